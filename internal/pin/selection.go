package pin

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k3s9p/internal/hint"
	"k3s9p/internal/packages"
)

// auto is the DISTRO that takes the best distribution that can be built.
const auto = "auto"

// distributions are the distributions in the order in which auto tries them.
var distributions = []string{"k3s", "kubernetes"}

// Selection is what a DISTRO means here and now.
type Selection struct {
	Distribution string
	Sets         []*Set
	Why          string // why auto took this one; empty otherwise
	// Parted is the set that the first of Sets are the parts of; nil where each set gives
	// programs of its own.
	Parted *Set
}

// Upstream is the version of the set that the distribution is named after, or of
// its first one.
func (s Selection) Upstream() string {
	if i := slices.IndexFunc(s.Sets, func(set *Set) bool { return set.Name == s.Distribution }); i >= 0 {
		return s.Sets[i].Upstream()
	}
	return s.Sets[0].Upstream()
}

// Programs are those that the distribution consists of.
func (s Selection) Programs() []Program {
	var programs []Program
	sets := s.Sets
	if s.Parted != nil {
		programs, sets = slices.Clone(s.Parted.Config.Whole.Programs), sets[len(s.Parted.Config.Parts):]
	}
	for _, set := range sets {
		programs = append(programs, set.Config.Programs...)
	}
	return programs
}

// Select returns what a DISTRO may mean, in the order in which it is to be tried: one
// distribution, or several for auto. Sets with parts still have to be taken apart.
func Select(sets []*Set, distro string) ([]Selection, error) {
	of := make(map[string][]*Set)
	for _, set := range sets {
		for _, name := range set.Config.Distributions {
			of[name] = append(of[name], set)
		}
	}
	switch distro = cmp.Or(distro, auto); {
	case distro == auto:
		var passed []string // why distributions are passed over
		var all []Selection
		for _, name := range distributions {
			byName := slices.IndexFunc(of[name], func(s *Set) bool { return s.Config.OnlyByName != "" })
			switch {
			case len(of[name]) == 0:
				passed = append(passed, "nothing in build/ is for "+name)
				continue
			case byName >= 0:
				passed = append(passed, fmt.Sprintf("%s only with DISTRO=%s: %s", name, name, of[name][byName].Config.OnlyByName))
				continue
			}
			selection := Selection{Distribution: name, Sets: of[name]}
			if len(all) == 0 {
				selection.Why = strings.Join(passed, "; ")
			}
			all = append(all, selection)
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("nothing in build/ is for any of %s", strings.Join(distributions, ", "))
		}
		return all, nil
	case len(of[distro]) > 0:
		return []Selection{{Distribution: distro, Sets: of[distro]}}, nil
	case slices.Contains(distributions, distro):
		return nil, hint.Add(fmt.Errorf("distribution %s cannot be built: nothing in build/ is for it", distro), "DISTRO=auto takes one that can be")
	default:
		return nil, hint.Add(fmt.Errorf("unknown DISTRO %q", distro), "DISTRO is one of %s, %s", strings.Join(distributions, ", "), auto)
	}
}

// SetWith returns the set that patches a module.
func (s Selection) SetWith(module string) (*Set, error) {
	for _, set := range s.Sets {
		if slices.Contains(set.Config.Patched, module) {
			return set, nil
		}
	}
	return nil, hint.Add(fmt.Errorf("no set of distribution %s patches %s", s.Distribution, module), "DISTRO=kubernetes has one")
}

// Needs are the packages of the system that compiling some sets takes.
func Needs(sets ...*Set) []packages.Need {
	var needs []packages.Need
	for _, set := range sets {
		needs = append(needs, set.Config.Needs...)
	}
	return needs
}

// CrossNeeds are those that compiling them for another architecture takes.
func CrossNeeds(arch string, sets ...*Set) ([]packages.Need, error) {
	var needs []packages.Need
	for _, set := range sets {
		cross, said := set.Config.CrossNeeds[arch]
		if set.Config.CGO && !said {
			return nil, hint.Add(fmt.Errorf("%s cannot be compiled for %s here: its build.yaml names no C compiler for that", set.Place(), arch),
				"build on a machine of that architecture, or add crossNeeds to build.yaml")
		}
		needs = append(needs, cross...)
	}
	return needs, nil
}

// CGO reports whether one of some sets uses cgo.
func CGO(sets ...*Set) bool {
	return slices.ContainsFunc(sets, func(s *Set) bool { return s.Config.CGO })
}
