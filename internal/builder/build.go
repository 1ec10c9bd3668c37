package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"k3s9p/internal/command"
	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
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
	// Slim leaves out of k3s what is no module, without asking for it.
	Slim bool
	// making is held by who makes sources, which are the same for all architectures.
	making *sync.Mutex
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
	return &Builder{Tree: tree, Go: gotool.Go{Runner: runner, Variables: variables, TempDir: tree.Work("tmp", "go")}, making: new(sync.Mutex)}
}

// For returns the builder for an architecture, as Go calls it. For another one than this
// machine's the distribution goes to dist/<architecture>.
func (b *Builder) For(arch string) (*Builder, error) {
	if arch == b.Target() {
		return b, nil
	}
	if !slices.Contains(gotool.Architectures(), arch) {
		return nil, hint.Add(fmt.Errorf("nothing can be built for the architecture %q", arch), "the architectures are %s", strings.Join(gotool.Architectures(), ", "))
	}
	other := At(b.Root, b.Runner, b.Variables...)
	other.Slim, other.AtOnce, other.Arch, other.Other, other.making = b.Slim, b.AtOnce, arch, arch, b.making
	return other, nil
}

// BuildFor makes a distribution for several architectures, and returns where each is.
// What compiling takes of the system is looked for, for all of them, before anything is
// built. They are built at the same time: a build waits for its linkers with all
// processors but one idle.
func (b *Builder) BuildFor(ctx context.Context, distro string, archs []string) (dists []string, err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	unlock, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	several := *b
	several.AtOnce = len(archs)
	b = &several
	builds, ctx := errgroup.WithContext(ctx)
	var begin []func() error
	conclusions := make([]string, len(archs))
	for i, arch := range archs {
		other, err := b.For(arch)
		if err != nil {
			return nil, err
		}
		selection, err := other.selected(ctx, distro)
		if err != nil {
			return nil, err
		}
		if len(begin) == 0 {
			b.announce(selection)
		}
		if selection.Parted != nil {
			builds.SetLimit(1) // what is fetched for its parts is in one place
		}
		if err := other.installNeeds(ctx, selection); err != nil {
			return nil, err
		}
		begin = append(begin, func() error {
			var err error
			if conclusions[i], err = other.build(ctx, selection); err != nil {
				return fmt.Errorf("build for %s: %w", other.Target(), err)
			}
			return nil
		})
		dists = append(dists, other.Dist())
	}
	for _, build := range begin {
		builds.Go(build)
	}
	if err := builds.Wait(); err != nil {
		return nil, err
	}
	fmt.Print(strings.Join(conclusions, ""))
	return dists, b.pruneSources()
}

// Build makes a distribution (DISTRO: k3s, kubernetes, auto) in dist/.
func (b *Builder) Build(ctx context.Context, distro string) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	unlock, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	selection, err := b.selected(ctx, distro)
	if err != nil {
		return err
	}
	b.announce(selection)
	if err := b.installNeeds(ctx, selection); err != nil {
		return err
	}
	conclusion, err := b.build(ctx, selection)
	if err != nil {
		return err
	}
	fmt.Print(conclusion)
	return b.pruneSources()
}

// open locks the work tree, if it can be written.
func (b *Builder) open(ctx context.Context) (unlock func(), err error) {
	if err := b.Writable(); err != nil {
		return nil, err
	}
	return b.Lock(ctx, b.UI)
}

// selected is the selection of a distribution; without one no empty dist/ stays.
func (b *Builder) selected(ctx context.Context, distro string) (pin.Selection, error) {
	selection, err := b.Selection(ctx, distro)
	if err != nil {
		_ = os.Remove(b.Dist()) // if it is empty
	}
	return selection, err
}

// build makes a distribution of which everything is there that compiling takes, and
// returns what is to be said of it.
func (b *Builder) build(ctx context.Context, selection pin.Selection) (string, error) {
	chain, err := b.Toolchain(ctx, b.Root, pin.CGO(selection.Sets...))
	if err != nil {
		return "", err
	}
	conclusion, err := b.assemble(ctx, selection, chain)
	var damaged *damagedError
	if errors.As(err, &damaged) {
		b.UI.Say("%v: building it again", damaged)
		if err := rmtree.Tree(damaged.dir); err != nil {
			return "", err
		}
		conclusion, err = b.assemble(ctx, selection, chain)
	}
	return conclusion, err
}

// needs are the packages of the system that compiling some sets takes here.
func (b *Builder) needs(sets []*pin.Set) ([]packages.Need, error) {
	if b.Other == "" {
		return pin.Needs(sets...), nil
	}
	return pin.CrossNeeds(b.Arch, sets...)
}

func (b *Builder) installNeeds(ctx context.Context, selection pin.Selection) error {
	needs, err := b.needs(selection.Sets)
	if err != nil {
		return err
	}
	return packages.Install(ctx, b.Runner, needs)
}

// forOther says for which architecture something is made, where it is not this machine's.
func (b *Builder) forOther() string {
	if b.Other == "" {
		return ""
	}
	return " for " + b.Other
}

// own is the directory of .work/ for what is made for this architecture only, so that
// building for one does not remove what is kept for the other.
func (b *Builder) own(directory string) string {
	if b.Other == "" {
		return directory
	}
	return directory + "-" + b.Other
}

// assemble makes all sets and brings dist/ to their state.
func (b *Builder) assemble(ctx context.Context, selection pin.Selection, chain record.Toolchain) (conclusion string, err error) {
	there := b.sumDist()
	var sets []Compiled
	for _, set := range selection.Sets {
		c, err := b.Make(ctx, set, chain)
		if err != nil {
			return "", err
		}
		sets = append(sets, c)
	}
	images, err := b.images(ctx, chain)
	if err != nil {
		return "", err
	}
	var lacks []string
	if selection.Parted != nil {
		if sets, lacks, err = b.join(ctx, selection, chain, sets); err != nil {
			return "", err
		}
	}
	sets = append(sets, images)
	launcher, err := b.launcher(ctx, chain)
	if err != nil {
		return "", err
	}
	d := distribution{recordOf(selection, chain, sets), sets, launcher}
	d.record.Lacks = lacks
	pruned := make(chan error, 1)
	go func() { pruned <- errors.Join(b.pruneFrames(d.record), b.pruneOutputs(d)) }()
	packed, err := b.pack(ctx, d)
	if err := errors.Join(err, <-pruned); err != nil {
		return "", err
	}
	d.sets = append(d.sets, packed)
	d.record.Outputs = append(d.record.Outputs, packed.Outputs...)
	changed, err := b.install(d, there())
	if err != nil {
		return "", err
	}
	return b.conclusion(selection, d.record, changed), nil
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
// returns the trees of its own by the path by which their packages are imported.
func (b *Builder) Sources(ctx context.Context, set *pin.Set) (map[string]string, error) {
	b.making.Lock()
	defer b.making.Unlock()
	zips, err := b.fetch(ctx, set)
	if err != nil {
		return nil, err
	}
	return b.patchTrees(ctx, set, zips)
}

func (b *Builder) announce(selection pin.Selection) {
	line := "distribution " + selection.Distribution
	if selection.Why != "" {
		line += " (" + selection.Why + ")"
	}
	b.UI.Say("%s", line)
}

// conclusion says what there is now, and what to type next.
func (b *Builder) conclusion(selection pin.Selection, build record.Build, changed int) string {
	state := "up to date"
	if changed > 0 {
		state = fmt.Sprintf("%d files written", changed)
	}
	why := ""
	if selection.Why != "" {
		why = " (" + selection.Why + ")"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s%s is in %s/: %s\n", build.Distribution, build.Version, why, filepath.Join("dist", b.Other), state)
	for _, what := range build.Lacks {
		fmt.Fprintf(&text, "it lacks %s\n", what)
	}
	if b.Other == "" {
		fmt.Fprintln(&text, "next: dist/k3s9p version, or go tool mage test")
	}
	return text.String()
}
