package pin

import (
	"maps"
	"path/filepath"
	"slices"

	"golang.org/x/mod/modfile"
)

// GoModWith is the go.mod of the set with trees in place of modules.
func (s *Set) GoModWith(trees map[string]string) ([]byte, error) {
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
