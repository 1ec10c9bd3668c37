package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// New returns a builder for the repository in the current folder.
func New(verbose bool) (*Builder, error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, err
	}
	return &Builder{Root: root, UI: UI{Printer: progress.New(verbose), Verbose: verbose}}, nil
}

// Build makes a distribution (DISTRO: k3s, kubernetes, auto) in dist/.
func (b *Builder) Build(ctx context.Context, distro string) (err error) {
	defer func() { err = b.noSpace(err) }()
	selection, err := b.selection(distro)
	if err != nil {
		return err
	}
	b.announce(selection)
	if err := b.writable(); err != nil {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// Who held the lock may have edited a patch meanwhile.
	if selection, err = b.selection(distro); err != nil {
		return err
	}

	if err := b.provide(ctx, selection.Sets); err != nil {
		return err
	}
	chain, err := b.toolchain(ctx, selection.Sets)
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
func (b *Builder) assemble(ctx context.Context, selection Selection, chain record.Toolchain) error {
	b.made = make(map[string]bool)
	there := b.sumDist()
	var sets []compiled
	for _, set := range selection.Sets {
		c, err := b.make(ctx, set, chain)
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
	build := recordOf(selection, chain, sets)
	launcher, err := b.launcher(ctx, chain)
	if err != nil {
		return err
	}
	packed, err := b.packDir(build, launcher)
	if err != nil {
		return err
	}
	dirs := map[string]string{launcherName: packed}
	inUse := []string{packed, filepath.Dir(launcher)}
	for _, set := range sets {
		inUse = append(inUse, set.Dir)
		for _, output := range set.Outputs {
			dirs[output.Path] = set.Dir
		}
	}
	pruned := make(chan error, 1)
	go func() { pruned <- errors.Join(b.pruneFrames(build), b.pruneAll(inUse)) }()
	output, err := b.pack(ctx, packed, build, sets, launcher)
	if err := errors.Join(err, <-pruned); err != nil {
		return err
	}
	build.Outputs = append(build.Outputs, output)
	changed, err := b.install(build, there(), func(output record.Output) string { return dirs[output.Path] })
	if err != nil {
		return err
	}
	b.conclude(selection, build, changed)
	return nil
}

// make compiles a set, or finds it compiled.
func (b *Builder) make(ctx context.Context, set *Set, chain record.Toolchain) (compiled, error) {
	key, err := b.outputKey(set, chain)
	if err != nil {
		return compiled{}, err
	}
	if c, ok := b.known(set, key); ok {
		return c, nil
	}
	trees, err := b.sources(ctx, set)
	if err != nil {
		return compiled{}, err
	}
	return b.compile(ctx, set, key, trees)
}

// sources fetches the modules of a set and patches the ones that have a series.
func (b *Builder) sources(ctx context.Context, set *Set) (map[string]string, error) {
	step := b.UI.Step("%s: fetch the pinned modules", set.Name)
	zips, err := b.download(ctx, set, step)
	if err != nil {
		step.Fail()
		return nil, err
	}
	step.Done("%d modules, all checked by go.sum", len(zips))
	return b.patchTrees(ctx, set, zips)
}

func (b *Builder) selection(distro string) (Selection, error) {
	sets, err := b.ReadSets()
	if err != nil {
		return Selection{}, err
	}
	return Select(sets, distro)
}

func (b *Builder) announce(selection Selection) {
	line := "distribution " + selection.Distribution
	if selection.Why != "" {
		line += " (" + selection.Why + ")"
	}
	b.UI.Say("%s", line)
}

// conclude says on standard output what there is now, and what to type next.
func (b *Builder) conclude(selection Selection, build record.Build, changed int) {
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

// Plan says what Build would do, and changes nothing.
func (b *Builder) Plan(ctx context.Context, distro string) error {
	selection, err := b.selection(distro)
	if err != nil {
		return err
	}
	b.announce(selection)
	for _, name := range missingPackages(ctx, selection.Sets) {
		fmt.Printf("install  %s (a package of the system)\n", name)
	}
	chain, err := b.toolchain(ctx, selection.Sets)
	if err != nil {
		return err
	}
	for _, set := range selection.Sets {
		key, err := b.outputKey(set, chain)
		if err != nil {
			return err
		}
		if _, ok := b.known(set, key); ok {
			fmt.Printf("keep     %s %s\n", set.Name, set.Version())
			continue
		}
		for _, series := range set.Series {
			tree, err := b.treePath(series)
			if err != nil {
				return err
			}
			if _, err := os.Stat(tree); err != nil {
				fmt.Printf("patch    %s %s (%d patches)\n", series.Pin.Path, series.Pin.Version, len(series.Patches))
			}
		}
		fmt.Printf("compile  %s %s\n", set.Name, set.Version())
	}
	return nil
}

// Clean removes .work, except for the edit trees, and what Build wrote to dist/.
func (b *Builder) Clean(ctx context.Context) error {
	if _, err := os.Stat(b.work()); err == nil {
		unlock, err := b.lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		for _, folder := range []string{"src", "stock", "mod", "out", "frames", "root", "tmp", "bench", "test"} {
			if err := rmtree.Tree(b.work(folder)); err != nil {
				return err
			}
		}
	}
	if _, err := b.removeStale(nil); err != nil {
		return err
	}
	defer fmt.Println("what was built is removed; edit trees and reports stay")
	sets, err := b.ReadSets()
	if err != nil {
		return err
	}
	for _, set := range sets {
		for _, program := range set.Config.Programs {
			for _, link := range program.Links {
				_ = os.Remove(b.dist(program.Dir, link))
			}
			_ = os.Remove(b.dist(program.Dir)) // if it is empty
		}
	}
	_ = os.Remove(b.dist(sumsName))
	_ = os.Remove(b.dist())
	return nil
}
