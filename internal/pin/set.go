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
	// Main is the module in whose tree a part of a set is compiled; nil for a set that
	// has a go.mod of its own.
	Main *PinnedSeries
	// Replaced are the lines of K3S9P_REPLACE in its go.mod: it is not the pinned one.
	Replaced []string

	upstream string            // what the programs call upstream's version; "" for that of Config.Module
	stamp    string            // the digest in their version; "" for that of the set's own patches
	names    map[string]string // what upstream's build scripts name, for linker variables
	known    []patch.Series    // all that patches/ has
}

// Config is build.yaml.
type Config struct {
	// Distributions that the set is part of; a set for tests is in none.
	Distributions []string  `json:"distributions"`
	Module        string    `json:"module"` // whose version the programs report
	Programs      []Program `json:"programs"`
	CGO           bool      `json:"cgo"`
	CFlags        []string  `json:"cflags,omitempty"` // of the C compiler, for cgo
	Tags          []string  `json:"tags,omitempty"`
	Linker        []string  `json:"linker,omitempty"` // further flags of the linker
	// LinkerVariables are set by the linker.
	LinkerVariables []LinkerVariable `json:"linkerVariables,omitempty"`
	Patched         []string         `json:"patched,omitempty"` // modules with a series
	Needs           []packages.Need  `json:"needs,omitempty"`   // of the system
	// CrossNeeds are those for compiling for another architecture, by that.
	CrossNeeds map[string][]packages.Need `json:"crossNeeds,omitempty"`
	// UpstreamTests are the test suites of patched modules that test:upstream
	// runs, stock against patched.
	UpstreamTests []UpstreamTest `json:"upstreamTests,omitempty"`
	// OnlyByName says why DISTRO=auto does not take the distribution; "" if it does.
	OnlyByName string `json:"onlyByName,omitempty"`
	// Parts, instead of Programs, are what goes into the one program that Whole makes.
	Parts []Part `json:"parts,omitempty"`
	Whole *Part  `json:"whole,omitempty"`
	// Inputs are what Whole holds beside them that is no module.
	Inputs []Input `json:"inputs,omitempty"`
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
	// Replaces is the path of the module in whose place go.mod puts this one, and by
	// which its packages are imported. Usually it is empty.
	Replaces string
}

// Imported is the path by which the packages of the module are imported.
func (p Pin) Imported() string { return cmp.Or(p.Replaces, p.Path) }

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
	set.known = all
	for _, module := range set.modules() {
		series, err := set.series(module)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		set.Series = append(set.Series, series)
	}
	if _, err := set.pin(set.Config.Module); err != nil {
		return nil, err
	}
	return set, nil
}

// modules are the ones of which the set has trees of its own.
func (s *Set) modules() []string {
	modules := slices.Clone(s.Config.Patched)
	for _, part := range s.Config.Parts {
		modules = append(modules, part.Main)
		if part.Graft != nil {
			modules = append(modules, part.Graft.Module)
		}
	}
	slices.Sort(modules)
	if len(s.Config.Parts) == 0 {
		return s.Config.Patched
	}
	return slices.Compact(modules)
}

// series is the series for a module of the set. One in whose tree a part is compiled, and
// which no part names as patched, has none.
func (s *Set) series(module string) (PinnedSeries, error) {
	pin, err := s.pin(module)
	if err != nil {
		return PinnedSeries{}, err
	}
	local, pin, err := localFor(pin)
	if err != nil {
		return PinnedSeries{}, err
	}
	series := patch.Series{}
	patched := slices.Contains(s.Config.Patched, module)
	for _, part := range s.Config.Parts {
		patched = patched || part.Main == module && slices.Contains(part.Patched, module)
	}
	if patched {
		if series, err = patch.Find(s.known, pin.Path, pin.Version); err != nil {
			return PinnedSeries{}, err
		}
	}
	content, err := series.Digest()
	if err != nil {
		return PinnedSeries{}, err
	}
	return PinnedSeries{Series: series, Pin: pin, Local: local, Digest: digest.Of(TreeFormat, pin.Path, pin.Version, pin.Sum, content)}, nil
}

func (c *Config) validate() error {
	if len(c.Programs) == 0 && len(c.Parts) == 0 {
		return errors.New("it names no programs")
	}
	if err := c.validateParts(); err != nil {
		return err
	}
	for i, program := range c.Programs {
		if program.Name == "" || program.Package == "" {
			return fmt.Errorf("program %d has no name or no package", i+1)
		}
		c.Programs[i].Dir = cmp.Or(program.Dir, "bin")
	}
	needs := slices.Clone(c.Needs)
	for _, cross := range c.CrossNeeds {
		needs = slices.Concat(needs, cross)
	}
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
		pin := Pin{Path: require.Mod.Path, Version: require.Mod.Version}
		for _, replace := range file.Replace {
			if replace.Old.Path == pin.Path && (replace.Old.Version == "" || replace.Old.Version == pin.Version) {
				pin = Pin{Path: replace.New.Path, Version: replace.New.Version, Replaces: pin.Path}
			}
		}
		pin.Sum = sums[pin.Path+" "+pin.Version]
		s.Pins[require.Mod.Path] = pin
	}
	return nil
}

// pin returns a module of the set that has a checksum.
func (s *Set) pin(module string) (Pin, error) {
	pin, ok := s.Pins[module]
	switch {
	case ok && pin.Sum != "":
		return pin, nil
	case !ok && s.Main != nil:
		return Pin{}, hint.Add(fmt.Errorf("%s/go.mod does not name %s, which is to be patched", s.Place(), module), "upstream has changed: bring build.yaml and patches/ up to date")
	case !ok:
		return Pin{}, hint.Add(fmt.Errorf("%s/go.mod does not pin %s, which its build.yaml names", s.Place(), module),
			"cd build/%s && go get %s@VERSION", s.Name, module)
	}
	err := fmt.Errorf("%s/go.sum has no checksum for %s %s", s.Place(), pin.Path, pin.Version)
	if s.Main != nil {
		return Pin{}, hint.Add(err, "nothing is built without one")
	}
	return Pin{}, hint.Add(err, "nothing is built without one: cd build/%s && go mod tidy, and compare with a source that you trust", s.Name)
}

// oneLine folds the messages of parsers.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
