package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/mod/module"

	"k3s9p/internal/patch"
	"k3s9p/internal/pin"
	"k3s9p/internal/workdir"
)

// treePath is where the patched tree of a module stands. It is part of the
// programs (go version -m shows it), so it depends on nothing but the content.
func (b *Builder) treePath(series pin.PinnedSeries) (string, error) {
	escaped, err := module.EscapePath(series.Pin.Path)
	if err != nil {
		return "", err
	}
	return b.Work("src", fmt.Sprintf("%s@%s-%s", filepath.ToSlash(Flatten(escaped)), series.Pin.Version, series.Digest[:12])), nil
}

// patchTrees makes the patched trees of a set that do not exist yet and returns
// all by module path.
func (b *Builder) patchTrees(ctx context.Context, set *pin.Set, zips map[string]string) (map[string]string, error) {
	trees := make(map[string]string)
	for _, series := range set.Series {
		final, err := b.treePath(series)
		if err != nil {
			return nil, err
		}
		trees[series.Pin.Imported()] = final
		if _, err := os.Stat(final); err == nil {
			continue
		}
		if len(series.Patches) == 0 {
			if _, err := b.patchTree(ctx, series, zips[series.Pin.Path], final); err != nil {
				return nil, err
			}
			continue
		}
		step := b.UI.Step("%s: patch %s %s", set.Name, series.Pin.Path, series.Pin.Version)
		moved, err := b.patchTree(ctx, series, zips[series.Pin.Path], final)
		if err != nil {
			step.Fail()
			return nil, err
		}
		step.Done("%d patches%s", len(series.Patches), MovedHunks(moved))
	}
	return trees, nil
}

// MovedHunks lists the hunks that have moved, each on a line of its own.
func MovedHunks(moved []patch.Moved) string {
	text := ""
	for _, m := range moved {
		text += "\n  " + m.String()
	}
	return text
}

// patchTree links the files of the stock tree and replaces the ones that the
// series changes.
func (b *Builder) patchTree(ctx context.Context, series pin.PinnedSeries, zipFile, final string) ([]patch.Moved, error) {
	stock, err := b.StockTree(series, zipFile)
	if err != nil {
		return nil, err
	}
	tree, err := b.Temporary("tree")
	if err != nil {
		return nil, err
	}
	if err := LinkTree(stock, tree); err != nil {
		return nil, err
	}
	moved, err := series.Apply(tree, series.Pin.Path, series.Pin.Version)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return nil, err
	}
	return moved, errors.Join(ctx.Err(), workdir.Publish(tree, final))
}

// LinkTree makes a tree of hard links. Who changes a file in it must replace it.
func LinkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		return os.Link(path, target)
	})
}
