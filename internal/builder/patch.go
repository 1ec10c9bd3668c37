package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// treePath is where the patched tree of a module stands. It is part of the
// programs (go version -m shows it), so it depends on nothing but the content.
func (b *Builder) treePath(series PinnedSeries) (string, error) {
	escaped, err := module.EscapePath(series.Pin.Path)
	if err != nil {
		return "", err
	}
	return b.work("src", fmt.Sprintf("%s@%s-%s", filepath.ToSlash(flatten(escaped)), series.Pin.Version, series.Digest[:12])), nil
}

// flatten makes one file name of a module path.
func flatten(path string) string {
	name := []byte(path)
	for i, c := range name {
		if c == '/' {
			name[i] = '+'
		}
	}
	return string(name)
}

// patchTrees makes the patched trees of a set that do not exist yet and returns
// all by module path.
func (b *Builder) patchTrees(ctx context.Context, set *Set, zips map[string]string) (map[string]string, error) {
	trees := make(map[string]string)
	for _, series := range set.Series {
		final, err := b.treePath(series)
		if err != nil {
			return nil, err
		}
		trees[series.Pin.Path] = final
		if _, err := os.Stat(final); err == nil {
			continue
		}
		step := b.UI.Step("%s: patch %s %s", set.Name, series.Pin.Path, series.Pin.Version)
		if err := b.patchTree(ctx, series, zips[series.Pin.Path], final); err != nil {
			step.Fail()
			return nil, err
		}
		step.Done("%d patches", len(series.Patches))
	}
	return trees, nil
}

// patchTree links the files of the stock tree and replaces the ones that the
// series changes.
func (b *Builder) patchTree(ctx context.Context, series PinnedSeries, zipFile, final string) error {
	stock, err := b.stockTree(series, zipFile)
	if err != nil {
		return err
	}
	tree, err := b.temporary("tree")
	if err != nil {
		return err
	}
	if err := linkTree(stock, tree); err != nil {
		return err
	}
	if err := series.Apply(tree, series.Pin.Path+" "+series.Pin.Version); err != nil {
		return err
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return err
	}
	return errors.Join(ctx.Err(), publish(tree, final))
}

// stockTree unpacks a module as it is, once, and returns where.
func (b *Builder) stockTree(series PinnedSeries, zipFile string) (string, error) {
	pin := series.Pin
	final := b.work("stock", flatten(pin.Path)+"@"+pin.Version+"-"+digestOf(treeFormat, pin.Sum)[:12])
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tree, err := b.temporary("stock")
	if err != nil {
		return "", err
	}
	switch {
	case series.Local != nil:
		err = series.Local.unpack(pin, tree)
	case zipFile == "":
		err = fmt.Errorf("go mod download gave no zip for %s", pin.Path)
	default:
		err = extract(pin, zipFile, tree)
	}
	if err != nil {
		return "", err
	}
	return final, publish(tree, final)
}

// linkTree makes a tree of hard links. Who changes a file in it must replace it.
func linkTree(from, to string) error {
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

// modfileFor writes go.mod and go.sum of a set with the trees in place of their
// modules, and returns the path of the go.mod. Replacements are relative to the
// set's folder, so that the programs do not depend on where the repository is.
func (b *Builder) modfileFor(set *Set, name string, trees map[string]string) (string, error) {
	data, err := set.goModWith(trees)
	if err != nil {
		return "", err
	}
	dir, err := b.temporary("mod")
	if err != nil {
		return "", err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "go.mod"), data, 0o644),
		os.WriteFile(filepath.Join(dir, "go.sum"), set.GoSum, 0o644),
	)
	if err != nil {
		return "", err
	}
	final := b.work("mod", name)
	return filepath.Join(final, "go.mod"), publish(dir, final)
}

// goModWith is the go.mod of the set with trees in place of modules.
func (s *Set) goModWith(trees map[string]string) ([]byte, error) {
	if len(trees) == 0 {
		return s.GoMod, nil
	}
	file, err := modfile.Parse("go.mod", s.GoMod, nil)
	if err != nil {
		return nil, err
	}
	for _, path := range slices.Sorted(maps.Keys(trees)) {
		relative, err := filepath.Rel(s.Dir, trees[path])
		if err != nil {
			return nil, err
		}
		if err := file.AddReplace(path, "", filepath.ToSlash(relative), ""); err != nil {
			return nil, err
		}
	}
	file.Cleanup()
	return file.Format()
}
