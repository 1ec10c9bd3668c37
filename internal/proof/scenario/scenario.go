// Package scenario runs the scenarios of test/ in real gVisor sandboxes, with the
// programs in dist/ and with variants of them.
package scenario

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k3s9p/internal/hint"
	"k3s9p/internal/proof/contract"
)

// Scenario is a directory of test/ that runs in sandboxes.
type Scenario struct {
	Name string
	// Everywhere says that it runs in each gVisor, and not in the newest only.
	Everywhere bool
	// Natively are the tests, as -run of go test, that also run without gVisor, on a machine
	// of its own on this kernel.
	Natively string
	// Distributions are those that it is for; nil is kubernetes. It runs with the one that
	// dist/ has.
	Distributions []string
	// Virtual says that it runs in virtual machines and in no gVisor, and only when it
	// is asked for: their processors are emulated.
	Virtual bool
}

// The distributions; kubernetes is that of a scenario that names none.
const (
	kubernetes = "kubernetes"
	k3s        = "k3s"
)

// both are all distributions: what a scenario tests does not depend on them.
var both = []string{kubernetes, k3s}

// isFor reports whether the scenario is for a distribution.
func (s Scenario) isFor(distribution string) bool {
	return slices.Contains(s.Distributions, distribution) || s.Distributions == nil && distribution == kubernetes
}

// experiment is the scenario that writes a report.
const experiment = "experiment"

// All are the scenarios, in the order in which they run.
var All = []Scenario{
	{Name: "cluster", Everywhere: true, Distributions: both, Natively: "^TestCluster$"}, {Name: "rootless", Everywhere: true}, {Name: "install"}, {Name: "application", Natively: "."}, {Name: "multinode", Distributions: both, Natively: "."}, {Name: "updown"}, {Name: "crash", Distributions: both, Natively: "^TestCrash$"}, {Name: "undo"}, {Name: "poor"},
	{Name: "native"}, {Name: experiment, Everywhere: true}, {Name: "pods", Everywhere: true}, {Name: "stats", Everywhere: true}, {Name: "overlayroot"}, {Name: "hungmount"},
	{Name: "k3s", Everywhere: true, Distributions: []string{k3s}},
	{Name: "linux9p", Virtual: true},
}

func names() []string {
	var names []string
	for _, s := range All {
		names = append(names, s.Name)
	}
	return names
}

// Run is a scenario in the gVisor of a set, or in none.
type Run struct {
	Scenario, Set string
	Distribution  string         // "" is kubernetes
	Tests         string         // those that match, as -run of go test, or all if it is ""
	Bench         contract.Bench // if it measures
}

func (r Run) String() string { return r.Scenario + strings.TrimPrefix(r.Set, today) }

// virtual reports whether a run is in virtual machines.
func (r Run) virtual() bool {
	return slices.ContainsFunc(All, func(s Scenario) bool { return s.Name == r.Scenario && s.Virtual })
}

// Where says where a run runs.
func (r Run) Where() string {
	switch {
	case r.virtual():
		return "virtual machines"
	case r.Set == native:
		return "a container of this machine"
	case r.Scenario == natively:
		return "a network namespace of this machine"
	}
	return "gVisor"
}

// compares reports whether a run compares with variants of the sets.
func (r Run) compares() bool { return r.Scenario == experiment || r.virtual() }

// runs lists what is to run: all that are for a distribution, or one scenario, in each
// gVisor that it is for, or in one (today, or YYYYMM), or in none (native). Chosen tests run
// without a gVisor only if that is asked for: not all can.
func runs(root, distribution string, o Options) ([]Run, error) {
	scenario, gvisor := o.Only, o.GVisor
	if o.Tests != "" && scenario == "" {
		return nil, hint.Add(fmt.Errorf("tests that match %q are of one scenario", o.Tests), "go tool mage test:sandbox SCENARIO -run=%s", o.Tests)
	}
	if scenario != "" && !slices.Contains(names(), scenario) {
		return nil, hint.Add(fmt.Errorf("there is no scenario %q", scenario), "the scenarios are %s", strings.Join(names(), ", "))
	}
	var sets []string
	if gvisor != contract.Native {
		var err error
		if sets, err = Sets(root, gvisor); err != nil {
			return nil, err
		}
	}
	var runs []Run
	for _, set := range sets {
		for _, s := range All {
			switch {
			case scenario != "" && scenario != s.Name:
			case !s.isFor(distribution):
			case scenario == "" && s.Virtual:
			case gvisor == "" && !s.Everywhere && set != today:
			default:
				runs = append(runs, Run{Scenario: s.Name, Set: set, Distribution: distribution, Tests: o.Tests})
			}
		}
	}
	for _, s := range All {
		switch {
		case scenario != "" && scenario != s.Name:
		case s.Natively == "" || !s.isFor(distribution):
		case gvisor == contract.Native || gvisor == "" && o.Tests == "":
			runs = append(runs, Run{Scenario: s.Name, Set: native, Distribution: distribution, Tests: cmp.Or(o.Tests, s.Natively)})
		}
	}
	if len(runs) == 0 && gvisor == contract.Native {
		return nil, hint.Add(fmt.Errorf("the scenario %s needs a gVisor, or another distribution than %s, which is in dist/", scenario, distribution), "leave -gvisor out")
	}
	if len(runs) == 0 {
		return nil, hint.Add(fmt.Errorf("no scenario %s is for the distribution %s, which is in dist/", scenario, distribution), "DISTRO=… go tool mage build makes another one")
	}
	return runs, nil
}
