package scenario

import (
	"fmt"
	"slices"
	"strings"

	"k3s9p/internal/hint"
	"k3s9p/internal/pin"
	"k3s9p/internal/proof/contract"
)

// The sets that are built for these tests only: the sandbox of today, and those of
// earlier months, which people have. A set is called gvisor-YYYYMM.
const (
	today = "gvisor"
	older = today + "-"
	// native is called like a set, and is none: there is no gVisor.
	native = older + contract.Native
)

// Sets are the names of the sets with the gVisor that is called so (today, YYYYMM), or
// with all if it is "", the newest first.
func Sets(root, gvisor string) ([]string, error) {
	sets, err := pin.ReadSets(root)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, set := range sets {
		if set.Name == today || strings.HasPrefix(set.Name, older) {
			found = append(found, set.Name)
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		if a == today || b == today {
			return strings.Compare(a, b)
		}
		return strings.Compare(b, a)
	})
	return choose(found, gvisor)
}

func choose(sets []string, gvisor string) ([]string, error) {
	if gvisor == "" {
		return sets, nil
	}
	var names []string
	for _, set := range sets {
		if GVisor(set) == gvisor {
			return []string{set}, nil
		}
		names = append(names, GVisor(set))
	}
	return nil, hint.Add(fmt.Errorf("there is no gVisor %q", gvisor), "build/ has %s", strings.Join(names, ", "))
}

// GVisor is how a user calls the gVisor of a set: today, or YYYYMM.
func GVisor(set string) string {
	if set == today {
		return "today"
	}
	return strings.TrimPrefix(set, older)
}

// SetOf is the set of a gVisor.
func SetOf(gvisor string) string {
	if gvisor == GVisor(today) {
		return today
	}
	return older + gvisor
}

// runsc is how the sandbox of a set is called among the programs of the tests.
func runsc(set string) string { return "runsc" + strings.TrimPrefix(set, today) }
