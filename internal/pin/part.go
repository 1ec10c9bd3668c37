package pin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Part is programs that are compiled in the tree of a module that the set pins, with
// that module as the main one: its replace lines count only there.
type Part struct {
	Name string `json:"name"`
	Main string `json:"main"`
	// Graft is a module that becomes a package of Main.
	Graft  *Graft `json:"graft,omitempty"`
	Config        // without distributions, parts and inputs
}

// Graft is a module that becomes a package of another one, as a library: its func main
// is called Main there.
type Graft struct {
	Module  string `json:"module"`
	Dir     string `json:"dir"`     // in the other module; what is there is replaced
	Package string `json:"package"` // its name there
}

// Input is an archive that is no module. It is included if it can be fetched and has the
// sum that upstream names.
type Input struct {
	Name string `json:"name"`
	URL  string `json:"url"`    // a template, as the values of linker variables
	Sum  string `json:"sha256"` // in hexadecimal; a template as well
	What string `json:"what"`   // what is missing without it
}

func (c *Config) validateParts() error {
	if (len(c.Parts) == 0) != (c.Whole == nil) {
		return errors.New("parts make a whole: it names only one of both")
	}
	if c.Whole == nil {
		return nil
	}
	for _, part := range slices.Concat(c.Parts, []Part{*c.Whole}) {
		if part.Name == "" || part.Main == "" || len(part.Parts) > 0 {
			return fmt.Errorf("part %q: it has a name, a main module, and no parts of its own", part.Name)
		}
	}
	for i := range c.Parts {
		if err := c.Parts[i].validate(); err != nil {
			return fmt.Errorf("part %s: %w", c.Parts[i].Name, err)
		}
	}
	return c.Whole.validate()
}

// Derive is a part as a set of its own, which is compiled in a directory, named by the
// digest of its content. Its pins are those of the main module's own go.mod and go.sum.
// The names are what upstream's build scripts set, for linker variables.
func (s *Set) Derive(part Part, dir string, names map[string]string) (*Set, error) {
	i := slices.IndexFunc(s.Series, func(p PinnedSeries) bool { return p.Pin.Imported() == part.Main })
	if i < 0 {
		return nil, fmt.Errorf("build/%s: part %s is compiled in %s, which it does not pin", s.Name, part.Name, part.Main)
	}
	main := s.Series[i]
	derived := &Set{Name: part.Name, Dir: dir, Config: part.Config, Pins: make(map[string]Pin), Main: &main, names: names, known: s.known}
	if err := derived.readPins(); err != nil {
		return nil, err
	}
	derived.Pins[part.Main] = main.Pin
	derived.Config.Patched = slices.DeleteFunc(slices.Clone(part.Patched), func(module string) bool { return module == part.Main })
	for _, module := range derived.Config.Patched {
		series, err := derived.series(module)
		if err != nil {
			return nil, fmt.Errorf("build/%s, part %s: %w", s.Name, part.Name, err)
		}
		derived.Series = append(derived.Series, series)
	}
	return derived, nil
}

// With is the set with what was replaced in its go.mod.
func (s *Set) With(replaced []string) *Set {
	changed := *s
	changed.Replaced = replaced
	return &changed
}

// Called is the set with programs that report another version than that of their module
// and the patches in them: one of upstream, with a digest.
func (s *Set) Called(upstream, digest string) *Set {
	changed := *s
	changed.upstream, changed.stamp = upstream, digest
	return &changed
}

// Sources are the modules of which the programs have trees of their own: the main one of
// a part, and those with a series.
func (s *Set) Sources() []PinnedSeries {
	if s.Main == nil {
		return s.Series
	}
	return append([]PinnedSeries{*s.Main}, s.Series...)
}

// Place is where the go.mod is that pins the modules of the set.
func (s *Set) Place() string {
	if s.Main != nil {
		return s.Main.Pin.Path + "@" + s.Main.Pin.Version
	}
	return "build/" + s.Name
}

// values are what the templates of build.yaml can name.
func (s *Set) values(date string) map[string]string {
	values := map[string]string{"Version": s.Version(), "Upstream": s.Upstream(), "Date": date}
	if match := minorVersion.FindStringSubmatch(values["Upstream"]); match != nil {
		values["Major"], values["Minor"] = match[1], match[2]
	}
	if s.Main != nil {
		// The commit of a pseudo-version: https://go.dev/ref/mod#pseudo-versions
		values["Commit"] = s.Main.Pin.Version[strings.LastIndexByte(s.Main.Pin.Version, '-')+1:]
	}
	return values
}
