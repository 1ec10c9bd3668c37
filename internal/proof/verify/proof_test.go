package verify

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k3s9p/internal/blocker"
	"k3s9p/internal/pin"
	"k3s9p/internal/proof/scenario"
)

// unproved are patches, fixes and probes that are not taken out, with the reason.
var unproved = map[string]string{
	"patch kubernetes 0001": "the next one is written on top of it: it gives a function the interface that its test needs",

	"probe pod-network": "gVisor has bridges and veth devices: it is about machines without",
}

var root = filepath.Join("..", "..", "..")

// What is taken out is there, and so is the scenario that protects it; and nothing is
// forgotten without a reason.
func TestRemovals(t *testing.T) {
	taken := make(map[string]bool)
	for _, r := range removals {
		if taken[r.part.String()] {
			t.Errorf("%s is taken out twice", r.part)
		}
		taken[r.part.String()] = true
		if g, ok := r.test.(sandboxTest); ok && !slices.ContainsFunc(scenario.All, func(s scenario.Scenario) bool { return s.Name == g.scenario }) {
			t.Errorf("%s: there is no scenario %s", r.part, g.scenario)
		}
		if f, ok := r.part.(function); ok {
			if _, _, err := f.find(root); err != nil {
				t.Errorf("%s: %v", r.part, err)
			}
		}
		if r.says == "" {
			t.Errorf("%s: nobody says what its test says", r.part)
		}
	}
	parts := patches(t)
	for _, b := range blocker.All() {
		parts = append(parts, check(b.ID).String())
		if b.Decide != nil {
			parts = append(parts, fix(b.ID).String())
		}
	}
	slices.Sort(parts)
	for _, part := range slices.Compact(parts) { // sets share series
		if taken[part] == (unproved[part] != "") {
			t.Errorf("%s is to be taken out, or there is a reason why not", part)
		}
		delete(taken, part)
	}
	for part := range taken {
		t.Errorf("there is no %s", part)
	}
}

// patches names all patches as the removals do.
func patches(t *testing.T) (names []string) {
	t.Helper()
	sets, err := pin.ReadSets(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		for _, s := range set.Series {
			for _, p := range s.Patches {
				number, _, _ := strings.Cut(p.Name, "-")
				var called []string
				for _, r := range removals {
					if q, ok := r.part.(patch); ok && strings.HasSuffix(s.Pin.Path, "/"+q.module) {
						called = append(called, q.module)
					}
				}
				if slices.Sort(called); len(slices.Compact(called)) != 1 {
					t.Fatalf("%s is called %v", s.Pin.Path, called)
				}
				names = append(names, patch{called[0], number}.String())
			}
		}
	}
	return names
}

// The statement that is put into a function is Go, and the first in it.
func TestTakeOutAFunction(t *testing.T) {
	name, at, err := check("kmsg").find(root)
	if err != nil || filepath.Base(name) != "kmsg.go" || at == 0 {
		t.Errorf("the probe of kmsg is at %s:%d, %v", name, at, err)
	}
	if _, _, err := check("unknown").find(root); err == nil {
		t.Error("a blocker that there is not was found")
	}
	if _, _, err := fix("bridge-port").find(root); err == nil {
		t.Error("a fix was found of a blocker that has none")
	}
}

// A test is called as the log of its scenario is, and runs where the scenario does.
func TestNamesOfTests(t *testing.T) {
	for want, test := range map[string]sandboxTest{
		"TestPods of pods in gVisor":                                  whole("pods", today, "TestPods"),
		"TestPods of pods-202509 in gVisor":                           whole("pods", september2025, "TestPods"),
		"TestNode/passthrough of linux9p in virtual machines":         alone("linux9p", today, "TestNode/passthrough"),
		"TestNative of native in a network namespace of this machine": whole("native", today, "TestNative"),
	} {
		if got := test.String(); got != want {
			t.Errorf("it is called %q, want %q", got, want)
		}
	}
}

// Tests of one scenario pass together, each once.
func TestTogether(t *testing.T) {
	stats, pods := whole("stats", today, "TestStats/metrics"), alone("experiment", today, "TestPodBlockers/iteration-5-cni-plugins")
	all := []removal{{test: stats}, {test: whole("stats", today, "TestStats/node_memory")}, {test: program{}}, {test: pods},
		{test: alone("experiment", september2025, "TestPatchedPrograms/link-kind")}, {test: whole("experiment", today, "TestStock/cgroup-v1")}}
	if got := stats.together(all); got.run != "^TestStats$" {
		t.Errorf("of stats runs %s", got.run)
	}
	if got := pods.together(all); got.run != "^TestPodBlockers$/^iteration-5-cni-plugins$|^TestStock$" || got.test != "" {
		t.Errorf("of the experiment runs %s", got.run)
	}
}
