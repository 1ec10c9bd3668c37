package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// Clone copies the sources of the repository to a new directory, and returns its
// builder and what removes it again.
func (b *Builder) Clone(name string) (*Builder, func(), error) {
	dir, err := os.MkdirTemp("", name)
	if err != nil {
		return nil, nil, err
	}
	remove := func() { _ = rmtree.Tree(dir) }
	clone, err := b.cloneTo(filepath.Join(dir, "repository"))
	if err != nil {
		remove()
	}
	return clone, remove, err
}

func (b *Builder) cloneTo(root string) (*Builder, error) {
	if err := copySources(b.Root, root); err != nil {
		return nil, fmt.Errorf("copy the repository to %s: %w", root, err)
	}
	return At(root, b.Runner), nil
}

// CloneWithCache copies the sources to a directory, and what was built of them, so that
// only what is changed there is built. The files of the latter are hard links: whoever
// changes one replaces it.
func (b *Builder) CloneWithCache(root string) (*Builder, error) {
	clone, err := b.cloneTo(root)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"src", "stock", "mod", "out", "frames", "root"} {
		if err := LinkTree(b.Work(dir), clone.Work(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return clone, nil
}

// WithEmptyCache makes a clone compile everything: its Go build cache is its own.
func (b *Builder) WithEmptyCache() {
	b.Variables = append(b.Variables, "GOCACHE="+filepath.Join(filepath.Dir(b.Root), "cache"))
}

func copySources(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		skipped := slices.Contains([]string{".git", ".work", "dist"}, name)
		switch {
		case skipped && entry.IsDir():
			return filepath.SkipDir
		case skipped || !entry.Type().IsRegular(): // .git is a file in a worktree
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return workdir.CopyFile(path, filepath.Join(to, name), info.Mode().Perm())
	})
}
