package builder

import (
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
	root := filepath.Join(dir, "repository")
	if err := copySources(b.Root, root); err != nil {
		remove()
		return nil, nil, fmt.Errorf("copy the repository to %s: %w", root, err)
	}
	return At(root, b.Runner), remove, nil
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
		if slices.Contains([]string{".git", ".work", "dist"}, name) {
			return filepath.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return workdir.CopyFile(path, filepath.Join(to, name), info.Mode().Perm())
	})
}
