// Package pin reads what build/ says: which programs are made, from which modules in
// which versions, with which flags and patches.
package pin

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/digest"
	"k3s9p/internal/hint"
	"k3s9p/internal/packages"
	"k3s9p/internal/patch"
)

// Set is a directory of build/: programs that are built from one go.mod.
type Set struct {
	Name    string
	Variant string // what is different from the set of this name; usually empty
	Dir     string // absolute
	Config  Config
	Pins    map[string]Pin // by module path
	GoMod   []byte
	GoSum   []byte
	Series  []PinnedSeries // in the order of Config.Patched
}

// Config is build.yaml.
type Config struct {
	// Distributions that the set is part of; a set for tests is in none.
	Distributions []string  `json:"distributions"`
	Module        string    `json:"module"` // whose version the programs report
	Programs      []Program `json:"programs"`
	CGO           bool      `json:"cgo"`
	Tags          []string  `json:"tags,omitempty"`
	Linker        []string  `json:"linker,omitempty"` // further flags of the linker
	// LinkerVariables are set by the linker.
	LinkerVariables []LinkerVariable `json:"linkerVariables,omitempty"`
	Patched         []string         `json:"patched,omitempty"` // modules with a series
	Needs           []packages.Need  `json:"needs,omitempty"`   // of the system
	// UpstreamTests are the test suites of patched modules that test:upstream
	// runs, stock against patched.
	UpstreamTests []UpstreamTest `json:"upstreamTests,omitempty"`
}

// Program is an executable.
type Program struct {
	Name    string   `json:"name"`
	Package string   `json:"package"`
	Dir     string   `json:"dir,omitempty"`   // in dist/ and in the bundle; bin by default
	Links   []string `json:"links,omitempty"` // other names of it
}

// LinkerVariable is a Go variable that the linker sets to a text/template of {{.Version}} (v1.36.3+k3s9p.…),
// {{.Upstream}} (v1.36.3), {{.Major}}, {{.Minor}} and {{.Date}} (RFC 3339).
type LinkerVariable struct {
	Name  string `json:"variable"`
	Value string `json:"value"`
}

// UpstreamTest is a list of packages to test.
type UpstreamTest struct {
	Packages []string `json:"packages"`
	// Ginkgo suites are counted by spec: to go test a suite is one test.
	Ginkgo bool `json:"ginkgo,omitempty"`
	// Root says that the tests need root and network namespaces.
	Root bool `json:"root,omitempty"`
	// Path lists packages of the same module whose programs the tests run.
	Path []string `json:"path,omitempty"`
	// Needs are packages of the system that only the tests need.
	Needs []packages.Need `json:"needs,omitempty"`
}

// Pin is a module of a set at its version.
type Pin struct {
	Path, Version string
	Sum           string // h1: of the zip, from go.sum
}

// PinnedSeries is the series for a pin.
type PinnedSeries struct {
	patch.Series
	Pin    Pin
	Digest string // of the pin, the overlay and the patches
	Local  *Local // stands in for the module; nil if it is fetched
}

// TreeFormat is part of the digests of trees: it changes with the code that makes
// them, where that changes the result.
const TreeFormat = "tree 1"

// ReadSets reads all of build/ in the root of a repository.
func ReadSets(root string) ([]*Set, error) {
	files, err := filepath.Glob(filepath.Join(root, "build", "*", "build.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, hint.Add(fmt.Errorf("there is no build/*/build.yaml in %s", root), "run mage in the root of the repository")
	}
	all, err := patch.ReadAll(filepath.Join(root, "patches"), filepath.Join(root, "overlay"))
	if err != nil {
		return nil, err
	}
	var sets []*Set
	for _, file := range files {
		set, err := readSet(file, all)
		if err != nil {
			return nil, err
		}
		sets = append(sets, set)
	}
	return sets, nil
}

func readSet(file string, all []patch.Series) (*Set, error) {
	set := &Set{Dir: filepath.Dir(file), Name: filepath.Base(filepath.Dir(file)), Pins: make(map[string]Pin)}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict(data, &set.Config); err != nil {
		return nil, hint.Add(fmt.Errorf("%s: %s", file, oneLine(err)), "the keys are those of Config in internal/pin/set.go")
	}
	if err := set.Config.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := set.readPins(); err != nil {
		return nil, err
	}
	for _, module := range set.Config.Patched {
		pin, err := set.pin(module)
		if err != nil {
			return nil, err
		}
		local, pin, err := localFor(pin)
		if err != nil {
			return nil, err
		}
		series, err := patch.Find(all, pin.Path, pin.Version)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		content, err := series.Digest()
		if err != nil {
			return nil, err
		}
		set.Series = append(set.Series, PinnedSeries{Series: series, Pin: pin, Local: local, Digest: digest.Of(TreeFormat, pin.Path, pin.Version, pin.Sum, content)})
	}
	if _, err := set.pin(set.Config.Module); err != nil {
		return nil, err
	}
	return set, nil
}

func (c *Config) validate() error {
	if len(c.Programs) == 0 {
		return errors.New("it names no programs")
	}
	for i, program := range c.Programs {
		if program.Name == "" || program.Package == "" {
			return fmt.Errorf("program %d has no name or no package", i+1)
		}
		c.Programs[i].Dir = cmp.Or(program.Dir, "bin")
	}
	needs := c.Needs
	for _, test := range c.UpstreamTests {
		needs = slices.Concat(needs, test.Needs)
	}
	for _, need := range needs {
		if err := need.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// readPins reads go.mod and go.sum, the only place where versions live.
func (s *Set) readPins() error {
	var err error
	name := filepath.Join(s.Dir, "go.mod")
	if s.GoMod, err = os.ReadFile(name); err != nil {
		return err
	}
	if s.GoSum, err = os.ReadFile(filepath.Join(s.Dir, "go.sum")); err != nil {
		return hint.Add(err, "go.sum holds the checksums of the pins: cd %s && go mod tidy", s.Dir)
	}
	file, err := modfile.Parse(name, s.GoMod, nil)
	if err != nil {
		return err
	}
	sums := make(map[string]string)
	for line := range strings.Lines(string(s.GoSum)) {
		if fields := strings.Fields(line); len(fields) == 3 {
			sums[fields[0]+" "+fields[1]] = fields[2]
		}
	}
	for _, require := range file.Require {
		path, version := require.Mod.Path, require.Mod.Version
		s.Pins[path] = Pin{Path: path, Version: version, Sum: sums[path+" "+version]}
	}
	return nil
}

// pin returns a module of the set that has a checksum.
func (s *Set) pin(module string) (Pin, error) {
	pin, ok := s.Pins[module]
	if !ok {
		return Pin{}, hint.Add(fmt.Errorf("build/%s/go.mod does not pin %s, which its build.yaml names", s.Name, module),
			"cd build/%s && go get %s@VERSION", s.Name, module)
	}
	if pin.Sum == "" {
		return Pin{}, hint.Add(fmt.Errorf("build/%s/go.sum has no checksum for %s %s", s.Name, module, pin.Version),
			"nothing is built without one: cd build/%s && go mod tidy, and compare with a source that you trust", s.Name)
	}
	return pin, nil
}

// oneLine folds the messages of parsers.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
