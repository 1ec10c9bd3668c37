package pin

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"

	"k3s9p/internal/hint"
)

// replaceVariable names a file with replace lines for the parts of k3s: mirrors and forks
// where the network does not give the pinned modules.
const replaceVariable = "K3S9P_REPLACE"

// Replacements are the lines of such a file.
type Replacements struct {
	File  string
	lines []*modfile.Replace
}

// ReadReplacements reads the file that K3S9P_REPLACE names. Without one there are none.
func ReadReplacements() (Replacements, error) {
	name := os.Getenv(replaceVariable)
	if name == "" {
		return Replacements{}, nil
	}
	r := Replacements{File: name}
	data, err := os.ReadFile(name)
	if err != nil {
		return r, fmt.Errorf("%s: %w", replaceVariable, err)
	}
	file, err := modfile.Parse(name, data, nil)
	if err != nil {
		return r, fmt.Errorf("%s: %w", replaceVariable, err)
	}
	if len(file.Replace) == 0 || file.Module != nil || len(file.Require) > 0 {
		return r, hint.Add(fmt.Errorf("%s=%s is not a file with replace lines and nothing else", replaceVariable, name), "a line is as in go.mod: replace k8s.io/klog/v2 => k8s.io/klog/v2 v2.140.0")
	}
	for _, line := range file.Replace {
		if line.New.Version == "" && !filepath.IsAbs(line.New.Path) {
			if line.New.Path, err = filepath.Abs(filepath.Join(filepath.Dir(name), line.New.Path)); err != nil {
				return r, err
			}
		}
	}
	r.lines = file.Replace
	return r, nil
}

// Empty reports whether nothing is to be replaced.
func (r Replacements) Empty() bool { return len(r.lines) == 0 }

// In is a go.mod with those of the lines whose module it names, and what was replaced.
func (r Replacements) In(goMod []byte) ([]byte, []string, error) {
	file, err := modfile.Parse("go.mod", goMod, nil)
	if err != nil {
		return nil, nil, err
	}
	named := make(map[string]bool)
	for _, require := range file.Require {
		named[require.Mod.Path] = true
	}
	for _, replace := range file.Replace {
		named[replace.Old.Path] = true
	}
	var done []string
	for _, line := range r.lines {
		if !named[line.Old.Path] {
			continue
		}
		if line.Old.Version == "" {
			err = file.DropReplace(line.Old.Path, "")
		}
		if err == nil {
			err = file.AddReplace(line.Old.Path, line.Old.Version, line.New.Path, line.New.Version)
		}
		if err != nil {
			return nil, nil, err
		}
		done = append(done, text(line))
	}
	file.Cleanup()
	data, err := file.Format()
	return data, done, err
}

// text is a line as go.mod has it.
func text(line *modfile.Replace) string {
	return strings.TrimSpace(line.Old.Path+" "+line.Old.Version) + " => " + strings.TrimSpace(line.New.Path+" "+line.New.Version)
}

// Unused returns an error for a line that replaced nothing.
func (r Replacements) Unused(done []string) error {
	for _, line := range r.lines {
		if !slices.Contains(done, text(line)) {
			return fmt.Errorf("%s=%s: no part of the distribution names %s", replaceVariable, r.File, line.Old.Path)
		}
	}
	return nil
}
