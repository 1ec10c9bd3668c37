package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/blocker"
	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
)

// Program is the path of one of the programs that were unpacked.
func (p Paths) Program(name string) (string, error) {
	found, _ := filepath.Glob(filepath.Join(p.bundles(), "*", "bin", name))
	inK3s, _ := filepath.Glob(filepath.Join(p.k3sBin(), name))
	found = append(found, inK3s...)
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

// bundle is the directory that the programs are unpacked to: another one for each
// content.
func (p Paths) bundle(b *bundle.Bundle) string {
	digest := b.Digest()
	return filepath.Join(p.bundles(), fmt.Sprintf("%x", digest[:8]))
}

// programs is where up will unpack them.
func (p Paths) programs() string {
	self, err := os.Executable()
	if err == nil {
		var b *bundle.Bundle
		if b, err = bundle.Open(self); err == nil {
			defer b.Close()
			return p.bundle(b)
		}
	}
	return filepath.Join(p.bundles(), "none")
}

// Check is the plan that up would follow, made where it would run the node. It also says
// where that is, or why it is nowhere.
func Check(ctx context.Context, dataDir string) (Rung, blocker.Plan, error) {
	rung, err := FindRung(ctx, RootlessAuto)
	if err != nil {
		rung.Why = err.Error()
	}
	plan, err := rung.plan(ctx, Options{DataDir: dataDir})
	return rung, plan, err
}

// plan is made inside of namespaces of its own, if the node would be.
func (r Rung) plan(ctx context.Context, o Options) (blocker.Plan, error) {
	p := Paths{o.DataDir}
	if err := p.check(); err != nil {
		return blocker.Plan{}, err
	}
	planner := r.planHere
	if r.Rootless {
		planner = planInside
	}
	plan, err := planner(ctx, o)
	if running, _ := p.running(); err == nil && running {
		markFixed(&plan, p)
	}
	return plan, err
}

func (r Rung) planHere(ctx context.Context, o Options) (blocker.Plan, error) {
	p := Paths{o.DataDir}
	routes, err := routesOf(p)
	if err != nil {
		return blocker.Plan{}, err
	}
	c, err := settle(p, o, "", routes)
	if err != nil {
		return blocker.Plan{}, err
	}
	_, pods, err := chooseResolvers(p, o, c.DNS(), r.Rootless)
	if err != nil {
		return blocker.Plan{}, err
	}
	if c.Distribution == "" { // the bundle says it, if there is one
		if build, err := buildOf(); err == nil {
			c.Distribution = build.Distribution
		}
	}
	host := hostOf(p, c, p.programs())
	host.Settings.UserNamespace = r.Rootless
	host.Settings.Kubelet.Resolver = pods.file
	return makePlan(ctx, p, c, o, host)
}

// markFixed notes what the node that runs has fixed in its mount namespace, which
// nobody else sees.
func markFixed(plan *blocker.Plan, p Paths) {
	state, err := Status(p.Data)
	if err != nil || state.Plan == nil {
		return
	}
	for i := range plan.Findings {
		f := &plan.Findings[i]
		fixed := slices.ContainsFunc(state.Plan.Changes, func(c blocker.Change) bool { return c.ID == f.ID && c.Passing })
		if f.Answer == blocker.Found && fixed {
			f.Answer = blocker.Fixed
		}
	}
}

// Plan is what up would do.
type Plan struct {
	Version string  `json:"version"`
	Rung    Rung    `json:"rung"`
	Cluster Cluster `json:"cluster"`
	blocker.Plan
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
	build, cluster, err := preflight(o, rung, rung.ports)
	if err == nil {
		err = rung.uplink(ctx, o)
	}
	if err != nil {
		return Plan{}, err
	}
	plan, err := rung.plan(ctx, o)
	if err == nil {
		err = stuck(plan)
	}
	if err == nil && !rung.Rootless {
		err = taken(p)
	}
	return Plan{kubernetesVersion(build), rung, cluster, plan}, err
}

// stuck is the error about what no node runs with.
func stuck(plan blocker.Plan) error {
	var failures error
	for _, f := range plan.Stuck() {
		failures = errors.Join(failures, hint.Add(fmt.Errorf("%s: %s", f.Title, f.Evidence), "%s", f.Action))
	}
	return failures
}
