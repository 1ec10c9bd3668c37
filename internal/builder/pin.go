package builder

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/mod/modfile"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/hint"
	"k3s9p/internal/patch"
)

// Set is a folder of build/: programs that are built from one go.mod.
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
	Linker        []string  `json:"linker,omitempty"`  // further flags of the linker
	Stamp         []Stamp   `json:"stamp,omitempty"`   // variables set by the linker
	Patched       []string  `json:"patched,omitempty"` // modules with a series
	Needs         []Need    `json:"needs,omitempty"`   // of the system
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

// Stamp sets a variable to a text/template of {{.Version}} (v1.36.3+k3s9p.…),
// {{.Upstream}} (v1.36.3), {{.Major}}, {{.Minor}} and {{.Date}} (RFC 3339).
type Stamp struct {
	Variable string `json:"variable"`
	Value    string `json:"value"`
}

// Need is a package of Debian, found by a command, by a library of the C compiler
// or by a file.
type Need struct {
	Package string `json:"package"`
	Command string `json:"command,omitempty"`
	Library string `json:"library,omitempty"`
	File    string `json:"file,omitempty"`
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
	Needs []Need `json:"needs,omitempty"`
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
	Digest string       // of the pin, the overlay and the patches
	Local  *localSource // stands in for the module; nil if it is fetched
}

// auto is the DISTRO that takes the best distribution that can be built.
const auto = "auto"

// wanted are the distributions in the order in which auto tries them.
var wanted = []string{"k3s", "kubernetes"}

// ReadSets reads all of build/.
func (b *Builder) ReadSets() ([]*Set, error) {
	files, err := filepath.Glob(filepath.Join(b.Root, "build", "*", "build.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, hint.Add(fmt.Errorf("there is no build/*/build.yaml in %s", b.Root), "run mage in the root of the repository")
	}
	all, err := patch.ReadAll(filepath.Join(b.Root, "patches"), filepath.Join(b.Root, "overlay"))
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
		return nil, hint.Add(fmt.Errorf("%s: %s", file, oneLine(err)), "the keys are those of Config in internal/builder/pin.go")
	}
	if err := set.Config.check(); err != nil {
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
		digest, err := series.Digest()
		if err != nil {
			return nil, err
		}
		set.Series = append(set.Series, PinnedSeries{Series: series, Pin: pin, Local: local, Digest: digestOf(treeFormat, pin.Path, pin.Version, pin.Sum, digest)})
	}
	if _, err := set.pin(set.Config.Module); err != nil {
		return nil, err
	}
	return set, nil
}

func (c *Config) check() error {
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
		ways := 0
		for _, way := range []string{need.Command, need.Library, need.File} {
			if way != "" {
				ways++
			}
		}
		if need.Package == "" || ways != 1 {
			return fmt.Errorf("a need has a package and either a command, a library or a file, not %+v", need)
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

// Selection is what a DISTRO means here and now.
type Selection struct {
	Distribution string
	Sets         []*Set
	Why          string // why auto took this one; empty otherwise
}

// upstream is the version of the set that the distribution is named after, or of
// its first one.
func (s Selection) upstream() string {
	set := s.Sets[0]
	if i := slices.IndexFunc(s.Sets, func(set *Set) bool { return set.Name == s.Distribution }); i >= 0 {
		set = s.Sets[i]
	}
	return set.Pins[set.Config.Module].Version
}

// Select returns the sets of a distribution.
func Select(sets []*Set, distro string) (Selection, error) {
	of := make(map[string][]*Set)
	for _, set := range sets {
		for _, name := range set.Config.Distributions {
			of[name] = append(of[name], set)
		}
	}
	switch distro = cmp.Or(distro, auto); {
	case distro == auto:
		var missing []string
		for _, name := range wanted {
			if len(of[name]) > 0 {
				why := ""
				if len(missing) > 0 {
					why = fmt.Sprintf("nothing in build/ is for %s", strings.Join(missing, ", "))
				}
				return Selection{Distribution: name, Sets: of[name], Why: why}, nil
			}
			missing = append(missing, name)
		}
		return Selection{}, fmt.Errorf("nothing in build/ is for any of %s", strings.Join(wanted, ", "))
	case len(of[distro]) > 0:
		return Selection{Distribution: distro, Sets: of[distro]}, nil
	case slices.Contains(wanted, distro):
		return Selection{}, hint.Add(fmt.Errorf("distribution %s cannot be built: nothing in build/ is for it", distro), "DISTRO=auto takes one that can be")
	default:
		return Selection{}, hint.Add(fmt.Errorf("unknown DISTRO %q", distro), "DISTRO is one of %s, %s", strings.Join(wanted, ", "), auto)
	}
}

// PatchDigest identifies all patches of some sets: 12 hexadecimal digits, or
// nothing where nothing is patched.
func PatchDigest(sets ...*Set) string {
	var parts []string
	for _, set := range sets {
		for _, series := range set.Series {
			parts = append(parts, series.Digest)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	slices.Sort(parts)
	return digestOf(slices.Compact(parts)...)[:12]
}

// Version is what the set's programs report: the upstream version, and
// +k3s9p.<patch digest> where they are patched.
func (s *Set) Version() string { return versionWith(s.Pins[s.Config.Module].Version, PatchDigest(s)) }

func versionWith(upstream, digest string) string {
	if digest == "" {
		return upstream
	}
	separator := "+"
	if strings.Contains(upstream, "+") {
		separator = "."
	}
	return upstream + separator + "k3s9p." + digest
}

var minorVersion = regexp.MustCompile(`^v(\d+)\.(\d+)`)

// stamps returns the linker's -X flags.
func (s *Set) stamps(date string) ([]string, error) {
	values := map[string]string{"Version": s.Version(), "Upstream": s.Pins[s.Config.Module].Version, "Date": date}
	if match := minorVersion.FindStringSubmatch(values["Upstream"]); match != nil {
		values["Major"], values["Minor"] = match[1], match[2]
	}
	var flags []string
	for _, stamp := range s.Config.Stamp {
		t, err := template.New(stamp.Variable).Option("missingkey=error").Parse(stamp.Value)
		if err != nil {
			return nil, fmt.Errorf("build/%s/build.yaml: stamp: %w", s.Name, err)
		}
		var value strings.Builder
		if err := t.Execute(&value, values); err != nil {
			return nil, fmt.Errorf("build/%s/build.yaml: stamp: %w", s.Name, err)
		}
		flags = append(flags, "-X", stamp.Variable+"="+value.String())
	}
	return flags, nil
}

// oneLine folds the messages of parsers.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
