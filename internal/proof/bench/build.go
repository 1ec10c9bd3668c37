package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/patch"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
)

// builds measures, in a copy of the repository, a build with nothing to do,
// and one after a line of a cAdvisor patch has changed against go build of the
// same tree after such a change.
func builds(ctx context.Context, b *builder.Builder, selection pin.Selection) ([]measurement, error) {
	clone, remove, err := b.Clone("k3s9p-bench-")
	if err != nil {
		return nil, err
	}
	defer remove()
	if err := clone.Build(ctx, selection.Distribution); err != nil {
		return nil, err
	}
	step := b.UI.Step("mage build with nothing to do, and after one patch")
	var idle, mage, plain []float64
	for round := range rounds / 2 {
		step.Note("round %d", round+1)
		for _, side := range []struct {
			times *[]float64
			run   func() (time.Duration, error)
		}{
			{&idle, func() (time.Duration, error) { return timeMage(ctx, clone, selection.Distribution) }},
			{&mage, func() (time.Duration, error) {
				if err := changePatch(clone.Root); err != nil {
					return 0, err
				}
				return timeMage(ctx, clone, selection.Distribution)
			}},
			{&plain, func() (time.Duration, error) {
				if err := changePatch(clone.Root); err != nil {
					return 0, err
				}
				return timePlain(ctx, clone, selection.Distribution)
			}},
			// The build that go build has just compiled for, so that the next round
			// starts as this one did.
			{new([]float64), func() (time.Duration, error) { return timeMage(ctx, clone, selection.Distribution) }},
		} {
			took, err := side.run()
			if err != nil {
				step.Fail()
				return nil, err
			}
			*side.times = append(*side.times, took.Seconds())
		}
	}
	step.Done("")
	return []measurement{
		{name: "mage build with nothing to do", value: median(idle), unit: "s", limit: 2},
		{name: "mage build after one cAdvisor patch, against go build", value: median(mage) / median(plain), unit: "×", limit: 1.15,
			parts: fmt.Sprintf("mage build %.1f s, go build %.1f s", median(mage), median(plain))},
	}, nil
}

// changePatch edits a cAdvisor patch as a developer would: a line of code more in
// package fs.
func changePatch(root string) error {
	files, err := filepath.Glob(filepath.Join(root, "patches", cadvisor, "*", "*.patch"))
	if err != nil {
		return err
	}
	for _, file := range slices.Backward(files) { // the last one: the next ones would have to move
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		edited, ok, err := patch.Lengthen(data, "fs/fs.go", fmt.Sprintf("\t\t_ = %d\n", time.Now().UnixNano()))
		if err != nil {
			return err
		}
		if ok {
			return os.WriteFile(file, edited, 0o644)
		}
	}
	return errors.New("no cAdvisor patch adds a block to fs/fs.go")
}

// timeMage times go tool mage build, as a user types it.
func timeMage(ctx context.Context, b *builder.Builder, distro string) (time.Duration, error) {
	start := time.Now()
	_, err := b.Run(ctx, command.Command{Dir: b.Root, Env: append(os.Environ(), "DISTRO="+distro), Args: []string{"go", "tool", "mage", "build"}})
	return time.Since(start), err
}

// timePlain times go build of the programs that the patch is in. The patched tree
// is made before.
func timePlain(ctx context.Context, b *builder.Builder, distro string) (time.Duration, error) {
	selection, err := b.Choose(ctx, distro)
	if err != nil {
		return 0, err
	}
	set, err := selection.SetWith(cadvisor)
	if err != nil {
		return 0, err
	}
	return timeGoBuild(ctx, b, set)
}

func timeGoBuild(ctx context.Context, b *builder.Builder, set *pin.Set) (time.Duration, error) {
	trees, err := quiet(b).Sources(ctx, set)
	if err != nil {
		return 0, err
	}
	modfile, err := b.Modfile(set, set.Name+"-plain", trees)
	if err != nil {
		return 0, err
	}
	flags, err := set.Flags()
	if err != nil {
		return 0, err
	}
	dir, err := b.Temporary("plain")
	if err != nil {
		return 0, err
	}
	args := append([]string{"go", "build", "-modfile=" + modfile}, flags...)
	args = append(args, "-o", dir+"/")
	for _, program := range set.Config.Programs {
		args = append(args, program.Package)
	}
	start := time.Now()
	_, err = b.Run(ctx, command.Command{Dir: set.Dir, Env: append(b.EnvWithGC(set.Config.CGO), "GOPROXY=off"), Args: args})
	return time.Since(start), err
}

// coldBuild compares a first build with go build of the same sets, both with an
// empty build cache and with all modules fetched.
func coldBuild(ctx context.Context, b *builder.Builder, selection pin.Selection) ([]measurement, error) {
	var took [2]time.Duration
	for i, name := range []string{"plain", "mage"} {
		clone, remove, err := b.Clone("k3s9p-cold-" + name + "-")
		if err != nil {
			return nil, err
		}
		defer remove()
		clone.WithEmptyCache()
		step := b.UI.Step("cold: %s", name)
		if name == "mage" {
			start := time.Now()
			err = quiet(clone).Build(ctx, selection.Distribution)
			took[i] = time.Since(start)
		} else {
			for _, set := range selection.Sets {
				var one time.Duration
				// The set of the clone: its directory is elsewhere.
				moved := *set
				moved.Dir = filepath.Join(clone.Root, "build", set.Name)
				if one, err = timeGoBuild(ctx, clone, &moved); err != nil {
					break
				}
				took[i] += one
			}
		}
		if err != nil {
			step.Fail()
			return nil, err
		}
		step.Done("")
	}
	return []measurement{{
		name: "cold build, against go build", value: took[1].Seconds() / took[0].Seconds(), unit: "×", limit: 1.10,
		parts: fmt.Sprintf("mage build %.0f s, go build %.0f s", took[1].Seconds(), took[0].Seconds()),
	}}, nil
}

// quiet is a builder whose steps are part of a measurement.
func quiet(b *builder.Builder) *builder.Builder {
	silent := *b
	silent.UI = progress.NewPlain(io.Discard)
	return &silent
}
