package builder

import (
	"errors"
	"os"
	"path/filepath"

	"k3s9p/internal/pin"
	"k3s9p/internal/workdir"
)

// Modfile writes go.mod and go.sum of a set with the trees in place of their
// modules, and returns the path of the go.mod. Replacements are relative to the
// set's directory, so that the programs do not depend on where the repository is.
func (b *Builder) Modfile(set *pin.Set, name string, trees map[string]string) (string, error) {
	data, err := set.GoModWith(trees)
	if err != nil {
		return "", err
	}
	dir, err := b.Temporary("mod")
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
	final := b.Work("mod", name)
	return filepath.Join(final, "go.mod"), workdir.Publish(dir, final)
}
