package pin

import (
	"fmt"
	"slices"

	"k3s9p/internal/record"
)

// PinOf is the pin of a module, with the sum of the source that it was made of.
func (s *Set) PinOf(path string) Pin {
	for _, series := range s.Sources() {
		if series.Pin.Imported() == path {
			return series.Pin
		}
	}
	return s.Pins[path]
}

// Unverified lists the modules whose source is not the pinned one.
func (s *Set) Unverified() []string {
	var modules []string
	for _, series := range s.Sources() {
		if series.Local != nil && !series.Local.Verified {
			modules = append(modules, series.Pin.Path)
		}
	}
	return modules
}

// Patches lists what was applied to the modules of the set.
func (s *Set) Patches() []record.Patch {
	var all []record.Patch
	for _, series := range s.Sources() {
		for _, p := range series.Patches {
			all = append(all, record.Patch{
				Module: series.Pin.Path, Version: series.Pin.Version, Name: p.Name, Digest: p.Digest(),
				Description: p.Header.Description, Forwarded: p.Header.Forwarded, Bug: p.Header.Bug,
			})
		}
	}
	return all
}

// Compare says in what the record of a build differs from this set.
func (s *Set) Compare(built record.Set) error {
	if built.Version != s.Version() {
		return fmt.Errorf("%s is %s in dist/, and %s in build/ and patches/", s.Name, built.Version, s.Version())
	}
	flags, err := s.Flags()
	if err != nil {
		return err
	}
	if !slices.Equal(built.Flags, flags) {
		return fmt.Errorf("%s has other flags of go build", s.Name)
	}
	for _, module := range built.Modules {
		if pin, ok := s.Pins[module.Path]; ok && pin.Version != module.Version {
			return fmt.Errorf("%s has %s %s in dist/, and %s in build/%s/go.mod", s.Name, module.Path, module.Version, pin.Version, s.Name)
		}
	}
	return nil
}
