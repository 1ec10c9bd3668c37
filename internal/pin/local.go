package pin

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"

	"k3s9p/internal/hint"
)

// unverifiedVariable accepts local sources that are not the pinned ones.
const unverifiedVariable = "K3S9P_UNVERIFIED"

// Local is a directory that stands in for a module.
type Local struct {
	Dir      string
	Verified bool // its module zip has the pinned sum
}

// sourceVariables are the names under which a directory may be given for a module:
// K3S9P_SOURCE_cadvisor and K3S9P_SOURCE_github_com_google_cadvisor.
func sourceVariables(modulePath string) []string {
	prefix, _, ok := module.SplitPathVersion(modulePath)
	if !ok {
		prefix = modulePath
	}
	name := func(path string) string {
		return "K3S9P_SOURCE_" + strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, path)
	}
	return []string{name(modulePath), name(path.Base(prefix))}
}

// SourceVariable is the name under which a directory may be given for one of the modules
// of which the set has trees, short for the one that it is named after; "" for another
// module.
func (s *Set) SourceVariable(modulePath string) string {
	names := sourceVariables(modulePath)
	for _, series := range s.Sources() {
		switch {
		case series.Pin.Path != modulePath:
		case series.Pin.Imported() == s.Config.Module:
			return names[1]
		default:
			return names[0]
		}
	}
	return ""
}

// localFor looks for a directory that stands in for a pinned module. The directory, a
// tree or a clone, is taken if the module zip made of it has the pinned sum:
// then it is the pinned source. Otherwise it is an error, unless
// K3S9P_UNVERIFIED=1: then the pin that is returned has the directory's own sum.
func localFor(pin Pin) (*Local, Pin, error) {
	for _, variable := range sourceVariables(pin.Path) {
		dir := os.Getenv(variable)
		if dir == "" {
			continue
		}
		sum, err := sumOfDir(pin, dir)
		if err != nil {
			return nil, pin, fmt.Errorf("%s=%s: %w", variable, dir, err)
		}
		if sum == pin.Sum {
			return &Local{Dir: dir, Verified: true}, pin, nil
		}
		if os.Getenv(unverifiedVariable) != "1" {
			return nil, pin, hint.Add(fmt.Errorf("%s=%s is not the pinned source of %s %s: its module zip has %s, go.sum says %s", variable, dir, pin.Path, pin.Version, sum, pin.Sum),
				"check out the pinned version without changes, or set %s=1, which build.json then records", unverifiedVariable)
		}
		pin.Sum = sum
		return &Local{Dir: dir}, pin, nil
	}
	return nil, pin, nil
}

// sumOfDir makes the module zip of a directory and returns its sum, h1:….
func sumOfDir(pin Pin, dir string) (string, error) {
	file, err := os.CreateTemp("", "k3s9p-source-*.zip")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name())
	err = zip.CreateFromDir(file, module.Version{Path: pin.Path, Version: pin.Version}, dir)
	if err := errors.Join(err, file.Close()); err != nil {
		return "", err
	}
	return dirhash.HashZip(file.Name(), dirhash.Hash1)
}
