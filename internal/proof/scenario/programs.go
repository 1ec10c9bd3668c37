package scenario

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/image"
	"k3s9p/internal/packages"
	"k3s9p/internal/pin"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/record"
	"k3s9p/internal/workdir"
)

// variant is a set as it is without some of its patches or tags: what a scenario
// compares with.
type variant struct {
	set    string
	change func(*pin.Set) *pin.Set
	name   func(program string) string
}

const (
	cgroups  = "github.com/opencontainers/cgroups"
	cadvisor = "github.com/google/cadvisor"
)

var variants = []variant{
	{"kubernetes", patchedOnly(), as(contract.KubeStock)},
	{"kubernetes", patchedOnly(cgroups), as(contract.KubeCgroups)},
	{"kubernetes", patchedOnly(cgroups, cadvisor), as(contract.KubeCAdvisor)},
	{"containerd", patchedOnly(), contract.Stock},
	{"cni", patchedOnly(), contract.Stock},
	{"runc", func(s *pin.Set) *pin.Set { return s.WithoutTag("seccomp") }, as(contract.RuncWithoutSeccomp)},
}

func patchedOnly(modules ...string) func(*pin.Set) *pin.Set {
	return func(s *pin.Set) *pin.Set { return s.PatchedOnly(modules) }
}

func as(name string) func(string) string { return func(string) string { return name } }

// programs fills a directory with all that the scenarios of some runs put into
// sandboxes.
type programs struct {
	*builder.Builder
	selection pin.Selection
	dir       string
	chain     record.Toolchain
}

// makePrograms makes such a directory.
func makePrograms(ctx context.Context, b *builder.Builder, selection pin.Selection, runs []Run) (string, error) {
	sets, err := pin.ReadSets(b.Root)
	if err != nil {
		return "", err
	}
	// runc starts the containers of this machine; k3s has one that is no program of its own.
	ownRunc := slices.ContainsFunc(selection.Programs(), func(p pin.Program) bool { return p.Name == contract.Runc })
	sandboxes := slices.DeleteFunc(sets, func(set *pin.Set) bool {
		return !slices.ContainsFunc(runs, func(r Run) bool {
			return r.Set == set.Name || r.Set == native && set.Name == contract.Runc && !ownRunc
		})
	})
	all := append(slices.Clone(selection.Sets), sandboxes...)
	if err := packages.Install(ctx, b.Runner, pin.Needs(all...)); err != nil {
		return "", err
	}
	chain, err := b.Toolchain(ctx, b.Root, pin.CGO(all...))
	if err != nil {
		return "", err
	}
	dir, err := b.Temporary("sandbox")
	if err != nil {
		return "", err
	}
	p := programs{b, selection, dir, chain}
	if err := p.linkDist(); err != nil {
		return "", err
	}
	for _, set := range sandboxes {
		name := runsc(set.Name)
		if set.Name == contract.Runc {
			name = set.Name
		}
		if err := p.link(ctx, set, as(name)); err != nil {
			return "", err
		}
	}
	if selection.Distribution == kubernetes && slices.ContainsFunc(runs, Run.compares) {
		if err := p.linkVariants(ctx); err != nil {
			return "", err
		}
	}
	if err := p.compileOwn(ctx); err != nil {
		return "", err
	}
	if slices.ContainsFunc(runs, func(r Run) bool { return r.Scenario == natively }) {
		if err := packages.Install(ctx, b.Runner, nativeNeeds); err != nil {
			return "", err
		}
	}
	roots := map[string]string{contract.Root: "gvisor"}
	if slices.ContainsFunc(runs, Run.virtual) {
		if err := packages.Install(ctx, b.Runner, virtualNeeds); err != nil {
			return "", err
		}
		roots[contract.LinuxRoot] = "qemu"
	}
	for name, of := range roots {
		root, err := debianRoot(ctx, b, of)
		if err == nil {
			err = workdir.LinkFile(root, filepath.Join(dir, name))
		}
		if err != nil {
			return "", err
		}
	}
	return dir, nil
}

// natively is the scenario on this machine itself, and nativeNeeds are what kube-proxy
// writes its rules with there.
const natively = "native"

var nativeNeeds = []packages.Need{{Package: "nftables", Command: "nft"}}

// virtualNeeds are what runs virtual machines.
var virtualNeeds = []packages.Need{{Package: "qemu-system-x86", Command: "qemu-system-x86_64"}}

// linkDist links what is in dist/.
func (p programs) linkDist() error {
	files := map[string]string{
		contract.Launcher:   p.Dist(builder.LauncherName),
		contract.PauseImage: p.Dist("images", "pause.tar"),
	}
	for _, program := range p.selection.Programs() {
		files[program.Name] = p.Dist(program.Dir, program.Name)
	}
	for name, file := range files {
		if err := workdir.LinkFile(file, filepath.Join(p.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// link makes a set and links its programs.
func (p programs) link(ctx context.Context, set *pin.Set, name func(string) string) error {
	made, err := p.Make(ctx, set, p.chain)
	if err != nil {
		return err
	}
	for _, output := range made.Outputs {
		if output.Link != "" {
			continue
		}
		if err := workdir.LinkFile(made.File(output), filepath.Join(p.dir, name(filepath.Base(output.Path)))); err != nil {
			return err
		}
	}
	return nil
}

func (p programs) linkVariants(ctx context.Context) error {
	for _, v := range variants {
		i := slices.IndexFunc(p.selection.Sets, func(s *pin.Set) bool { return s.Name == v.set })
		if i < 0 {
			return fmt.Errorf("distribution %s has no set %s", p.selection.Distribution, v.set)
		}
		if err := p.link(ctx, v.change(p.selection.Sets[i]), v.name); err != nil {
			return err
		}
	}
	return nil
}

// compileOwn compiles the tests' own programs.
func (p programs) compileOwn(ctx context.Context) error {
	for name, pkg := range map[string]string{contract.Inside: "./test/gvisor/inside", contract.Guest: "./test/qemu/guest", contract.Web: "./test/web"} {
		_, err := p.Run(ctx, command.Command{Dir: p.Root, Env: p.Env(false), Args: []string{
			"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(p.dir, name), pkg}})
		if err != nil {
			return err
		}
	}
	return image.Save(filepath.Join(p.dir, contract.WebImage), "k3s9p.local/web:1", filepath.Join(p.dir, contract.Web), p.Target())
}
