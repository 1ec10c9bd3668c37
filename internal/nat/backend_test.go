package nat

import (
	"errors"
	"testing"
)

// picky is a kernel that refuses some targets, with all rules of the table at once.
type picky struct {
	Backend
	refused targetKind
}

func (picky) String() string { return "picky" }

var errRefused = errors.New("invalid argument")

func (p picky) Apply(rules []Rule) error {
	for _, rule := range rules {
		if rule.Target.kind == p.refused {
			return errRefused
		}
	}
	return nil
}

// A kernel says no more than "invalid argument" to a whole table: Supports says
// which rule it is.
func TestSupportsNamesTheRefusedRule(t *testing.T) {
	needRoot(t)
	if err := Supports(picky{refused: masquerade}, clusterRules); err != nil {
		t.Errorf("nothing is refused, but: %v", err)
	}
	err := Supports(picky{refused: redirect}, clusterRules)
	if want := "-A PREROUTING -i cni0 -p tcp -j REDIRECT --to-ports 15001: invalid argument"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if !errors.Is(err, errRefused) {
		t.Error("the kernel's error is lost")
	}
}

// What is supported can be applied, and finding it out applies nothing.
func TestSupportsChangesNothing(t *testing.T) {
	needRoot(t)
	for _, backend := range Backends() {
		if err := Supports(backend, clusterRules); err != nil {
			t.Logf("%s: %v", backend, err)
			continue
		}
		inOwnNetwork(t, func() error {
			if err := Supports(backend, clusterRules); err != nil {
				return err
			}
			if err := backend.Verify(clusterRules); err == nil {
				t.Errorf("%s: the rules are there before Apply", backend)
			}
			if err := backend.Apply(clusterRules); err != nil {
				return err
			}
			return backend.Verify(clusterRules)
		})
	}
}

// Each rule alone, on each back end that this kernel has: for the log of a run in a
// sandbox.
func TestEachRule(t *testing.T) {
	needRoot(t)
	rules := append(append([]Rule{}, clusterRules...), otherRules...)
	rules = append(rules,
		Rule{Chain: Postrouting, Out: "eth0", Source: pods, Target: SNAT(uplink)},
		Rule{Chain: Postrouting, Out: "eth0", Source: pods, Target: Masquerade()},
		Rule{Chain: Postrouting, Out: "eth0", Source: pods, Protocol: TCP, Target: Masquerade()})
	for _, backend := range Backends() {
		for _, rule := range rules {
			answer := "taken"
			if err := Supports(backend, []Rule{rule}); err != nil {
				answer = err.Error()
			}
			t.Logf("%s: %s: %s", backend, rule, answer)
		}
	}
}
