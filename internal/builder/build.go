package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/command"
	"k3s9p/internal/gotool"
	"k3s9p/internal/packages"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// Builder is what all phases have in common: a work tree and the go command.
type Builder struct {
	workdir.Tree
	gotool.Go
}

// New returns a builder for the repository in the current directory.
func New(verbose bool) (*Builder, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, err
	}
	return At(root, command.Runner{UI: progress.New(verbose), Verbose: verbose}), nil
}

// At returns a builder for the repository in a directory, with variables that go
// before those of this process.
func At(root string, runner command.Runner, variables ...string) *Builder {
	tree := workdir.Tree{Root: root}
	return &Builder{Tree: tree, Go: gotool.Go{Runner: runner, Variables: variables, TempDir: tree.Work("tmp", "go")}}
}

// Build makes a distribution (DISTRO: k3s, kubernetes, auto) in dist/.
func (b *Builder) Build(ctx context.Context, distro string) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	selection, err := b.Selection(distro)
	if err != nil {
		return err
	}
	b.announce(selection)
	if err := b.Writable(); err != nil {
		return err
	}
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return err
	}
	defer unlock()
	// Who held the lock may have edited a patch meanwhile.
	if selection, err = b.Selection(distro); err != nil {
		return err
	}

	if err := packages.Install(ctx, b.Runner, pin.Needs(selection.Sets...)); err != nil {
		return err
	}
	chain, err := b.Toolchain(ctx, b.Root, pin.CGO(selection.Sets...))
	if err != nil {
		return err
	}
	err = b.assemble(ctx, selection, chain)
	var damaged *damagedError
	if errors.As(err, &damaged) {
		b.UI.Say("%v: building it again", damaged)
		if err := rmtree.Tree(damaged.dir); err != nil {
			return err
		}
		err = b.assemble(ctx, selection, chain)
	}
	return err
}

// assemble makes all sets and brings dist/ to their state.
func (b *Builder) assemble(ctx context.Context, selection pin.Selection, chain record.Toolchain) error {
	there := b.sumDist()
	var sets []Compiled
	for _, set := range selection.Sets {
		c, err := b.Make(ctx, set, chain)
		if err != nil {
			return err
		}
		sets = append(sets, c)
	}
	images, err := b.images(ctx, chain)
	if err != nil {
		return err
	}
	sets = append(sets, images)
	launcher, err := b.launcher(ctx, chain)
	if err != nil {
		return err
	}
	d := distribution{recordOf(selection, chain, sets), sets, launcher}
	pruned := make(chan error, 1)
	go func() { pruned <- errors.Join(b.pruneFrames(d.record), b.pruneOutputs(d)) }()
	packed, err := b.pack(ctx, d)
	if err := errors.Join(err, <-pruned); err != nil {
		return err
	}
	d.sets = append(d.sets, packed)
	d.record.Outputs = append(d.record.Outputs, packed.Outputs...)
	changed, err := b.install(d, there())
	if err != nil {
		return err
	}
	b.conclude(selection, d.record, changed)
	return nil
}

// distribution is all that goes to dist/.
type distribution struct {
	record   record.Build
	sets     []Compiled
	launcher string // the program without the other files in it
}

// source is the set that an output comes from.
func (d distribution) source(output record.Output) (Compiled, bool) {
	for _, set := range d.sets {
		for _, own := range set.Outputs {
			if own.Path == output.Path {
				return set, true
			}
		}
	}
	return Compiled{}, false
}

// Make compiles a set, or finds it compiled.
func (b *Builder) Make(ctx context.Context, set *pin.Set, chain record.Toolchain) (Compiled, error) {
	key, err := outputKey(set, chain)
	if err != nil {
		return Compiled{}, err
	}
	if c, ok := readCompiled(b.outputDir(set, key)); ok {
		return c, nil
	}
	trees, err := b.Sources(ctx, set)
	if err != nil {
		return Compiled{}, err
	}
	return b.compile(ctx, set, key, trees)
}

// Sources fetches the modules of a set, patches the ones that have a series, and
// returns the patched trees by module path.
func (b *Builder) Sources(ctx context.Context, set *pin.Set) (map[string]string, error) {
	step := b.UI.Step("%s: fetch the pinned modules", set.Name)
	zips, err := b.Download(ctx, set, step)
	if err != nil {
		step.Fail()
		return nil, err
	}
	step.Done("%d modules, all checked by go.sum", len(zips))
	return b.patchTrees(ctx, set, zips)
}

// Selection reads build/ and chooses a distribution.
func (b *Builder) Selection(distro string) (pin.Selection, error) {
	sets, err := pin.ReadSets(b.Root)
	if err != nil {
		return pin.Selection{}, err
	}
	return pin.Select(sets, distro)
}

func (b *Builder) announce(selection pin.Selection) {
	line := "distribution " + selection.Distribution
	if selection.Why != "" {
		line += " (" + selection.Why + ")"
	}
	b.UI.Say("%s", line)
}

// conclude says on standard output what there is now, and what to type next.
func (b *Builder) conclude(selection pin.Selection, build record.Build, changed int) {
	state := "up to date"
	if changed > 0 {
		state = fmt.Sprintf("%d files written", changed)
	}
	why := ""
	if selection.Why != "" {
		why = " (" + selection.Why + ")"
	}
	fmt.Printf("%s %s%s is in dist/: %s\n", build.Distribution, build.Version, why, state)
	fmt.Println("next: dist/k3s9p version, or go tool mage test")
}
