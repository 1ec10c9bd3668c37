package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/hint"
)

// Program is the path of one of the programs that were unpacked.
func (p Paths) Program(name string) (string, error) {
	found, _ := filepath.Glob(filepath.Join(p.bundles(), "*", "bin", name))
	for _, program := range found {
		if !strings.HasPrefix(filepath.Base(filepath.Dir(filepath.Dir(program))), ".") {
			return program, nil
		}
	}
	if _, err := os.ReadDir(p.Data); errors.Is(err, os.ErrPermission) {
		return "", hint.Add(fmt.Errorf("the cluster in %s belongs to root", p.Data), "sudo k3s9p %s …", name)
	}
	return "", hint.Add(fmt.Errorf("there is no cluster in %s", p.Data), "k3s9p up makes one")
}

// unpacked is the directory of the programs, or where it will be.
func (p Paths) unpacked() string {
	if program, err := p.Program("runc"); err == nil {
		return filepath.Dir(filepath.Dir(program))
	}
	return filepath.Join(p.bundles(), "none")
}

// Check probes for all blockers, as up does before it fixes them: where a node would
// run in namespaces of its own, in such ones. It also says where that is, or why it is
// nowhere.
func Check(ctx context.Context, dataDir string) (Rung, []blocker.Finding, error) {
	rung, err := FindRung(ctx, RootlessAuto)
	if err != nil {
		rung.Why = err.Error()
	}
	findings, err := rung.check(ctx, dataDir)
	return rung, findings, err
}

func (r Rung) check(ctx context.Context, dataDir string) ([]blocker.Finding, error) {
	p := Paths{dataDir}
	if err := p.check(); err != nil {
		return nil, err
	}
	if r.Rootless {
		return checkInside(p)
	}
	return check(ctx, p)
}

func check(ctx context.Context, p Paths) ([]blocker.Finding, error) {
	s := config.Default()
	return blocker.Check(ctx, hostOf(p, p.unpacked(), &s))
}

// Plan is what up would do.
type Plan struct {
	Version     string            `json:"version"`
	Rung        Rung              `json:"rung"`
	Cluster     Cluster           `json:"cluster"`
	Directories []string          `json:"directories,omitempty"` // to be made, until down
	Findings    []blocker.Finding `json:"findings"`
}

// DryRun says what up would do, or returns the error that it would end with.
func DryRun(ctx context.Context, o Options) (Plan, error) {
	if err := o.check(); err != nil {
		return Plan{}, err
	}
	p := Paths{o.DataDir}
	if running, err := p.running(); err != nil {
		return Plan{}, err
	} else if running {
		return Plan{}, runningError(p)
	}
	rung, err := FindRung(ctx, o.Rootless)
	if err != nil {
		return Plan{}, err
	}
	build, cluster, err := preflight(o, rung.ports())
	if err != nil {
		return Plan{}, err
	}
	findings, err := rung.check(ctx, o.DataDir)
	return Plan{Version: kubernetesVersion(build), Rung: rung, Cluster: cluster, Directories: p.missing(), Findings: findings}, err
}
