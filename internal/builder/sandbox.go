package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"k3s9p/internal/hint"
	"k3s9p/internal/record"
)

// sandboxSet is the set that is built for these tests only.
const sandboxSet = "gvisor"

// kubelets are the programs kube with some of the patches only.
var kubelets = map[string][]string{
	"kube-stock":    nil,
	"kube-cgroups":  {"github.com/opencontainers/cgroups"},
	"kube-cadvisor": {"github.com/opencontainers/cgroups", cadvisor},
}

// TestSandbox builds gVisor and the programs of a node, and runs the scenarios
// under test/ in real sandboxes.
func (b *Builder) TestSandbox(ctx context.Context) (err error) {
	defer func() { err = b.noSpace(err) }()
	if os.Geteuid() != 0 {
		err := hint.Add(errors.New("a sandbox needs root"), "sudo go tool mage test:sandbox")
		if os.Getenv("CI") != "" {
			return err
		}
		b.UI.Step("test in gVisor").Skip("%v", err)
		return nil
	}
	selection, err := b.selection("kubernetes")
	if err != nil {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	programs, err := b.sandboxPrograms(ctx, selection)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout=15m", "./test/experiment")
	cmd.Dir, cmd.Env = b.Root, append(b.goEnv(false), "K3S9P_SANDBOX_PROGRAMS="+programs)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The tests delete their sandboxes when they are told to end.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return errors.Join(ctx.Err(), errors.New("scenarios in gVisor failed"))
	}
	return nil
}

// sandboxPrograms makes a folder with all that the scenarios put into sandboxes.
func (b *Builder) sandboxPrograms(ctx context.Context, selection Selection) (string, error) {
	sets, err := b.ReadSets()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(sets, func(s *Set) bool { return s.Name == sandboxSet })
	if i < 0 {
		return "", fmt.Errorf("there is no build/%s", sandboxSet)
	}
	all := append(slices.Clone(selection.Sets), sets[i])
	if err := b.provide(ctx, all); err != nil {
		return "", err
	}
	chain, err := b.toolchain(ctx, all)
	if err != nil {
		return "", err
	}
	dir, err := b.temporary("sandbox")
	if err != nil {
		return "", err
	}
	b.made = make(map[string]bool)
	for _, set := range all {
		if err := b.linkPrograms(ctx, set, chain, dir, ""); err != nil {
			return "", err
		}
	}
	kubernetes, err := selection.setWith(cadvisor)
	if err != nil {
		return "", err
	}
	for name, modules := range kubelets {
		if err := b.linkPrograms(ctx, kubernetes.patchedOnly(modules), chain, dir, name); err != nil {
			return "", err
		}
	}
	_, err = b.run(ctx, command{dir: b.Root, env: b.goEnv(false), args: []string{"go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "inside"), "./test/gvisor/inside"}})
	return dir, err
}

// linkPrograms makes a set and links its programs into dir, under their names or,
// for a set of one program, another one.
func (b *Builder) linkPrograms(ctx context.Context, set *Set, chain record.Toolchain, dir, name string) error {
	c, err := b.make(ctx, set, chain)
	if err != nil {
		return err
	}
	for _, output := range c.Outputs {
		if output.Link != "" {
			continue
		}
		target := filepath.Join(dir, filepath.Base(output.Path))
		if name != "" {
			target = filepath.Join(dir, name)
		}
		if err := linkFile(c.file(output), target); err != nil {
			return err
		}
	}
	return nil
}

// patchedOnly is the set with the series of the given modules only. Its outputs
// are kept under another name, so that they do not displace those of the set.
func (s *Set) patchedOnly(modules []string) *Set {
	variant := *s
	variant.Variant = fmt.Sprintf(".%d-patched", len(modules))
	variant.Series = slices.DeleteFunc(slices.Clone(s.Series), func(series PinnedSeries) bool { return !slices.Contains(modules, series.Pin.Path) })
	return &variant
}
