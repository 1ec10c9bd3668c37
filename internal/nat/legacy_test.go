package nat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needLegacy skips a test where this kernel has no ip_tables.
func needLegacy(t *testing.T) {
	t.Helper()
	needRoot(t)
	if err := Supports(Legacy{}, []Rule{{Chain: Prerouting, Target: Return()}}); errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) {
		t.Skipf("this kernel has no ip_tables: %v", err)
	}
}

// readNat reads the table nat as the kernel gives it, with the counters.
func readNat() (layout, []byte, error) {
	s, err := openSocket("nat")
	if err != nil {
		return layout{}, nil, err
	}
	defer s.close()
	return s.readEntries()
}

// The rules of others come and go with iptables(8): foreign.rules are what it makes
// on a machine with kube-proxy, with user chains, jumps, goto, a rule without a
// target, counters; plain.rules have only what gVisor takes.
func TestForeignRulesSurviveLegacy(t *testing.T) {
	needLegacy(t)
	need(t, "iptables-legacy-restore")
	for _, name := range []string{"foreign.rules", "plain.rules"} {
		t.Run(name, func(t *testing.T) {
			foreign, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			inOwnNetwork(t, func() error {
				if _, err := run(string(foreign), "iptables-legacy-restore", "--counters"); err != nil {
					t.Logf("this kernel does not take these rules: %v", err)
					return nil
				}
				return survive(t)
			})
		})
	}
}

func survive(t *testing.T) error {
	layoutBefore, before, err := readNat()
	if err != nil {
		return err
	}
	shownBefore, err := run("", "iptables-legacy-save", "--counters", "-t", "nat")
	if err != nil {
		return err
	}
	if err := (Legacy{}).Apply(append(append([]Rule{}, clusterRules...), otherRules...)); err != nil {
		return err
	}
	shown, err := run("", "iptables-legacy-save", "--counters", "-t", "nat")
	if err != nil {
		return err
	}
	for line := range strings.Lines(shownBefore) {
		if !strings.HasPrefix(line, "#") && !strings.Contains(shown, line) {
			t.Errorf("with our rules iptables-save does not show any more: %s\nbut\n%s", line, shown)
		}
	}
	if err := (Legacy{}).Remove(); err != nil {
		return err
	}
	layoutAfter, after, err := readNat()
	if err != nil {
		return err
	}
	if layoutBefore != layoutAfter || !bytes.Equal(before, after) {
		t.Errorf("the table of others is not what it was: %+v, %+v", layoutBefore, layoutAfter)
	}
	return nil
}

// Our rules stand in front of those of others, once and in their order, as
// iptables(8) shows them, however often they are applied and whatever was before.
func TestApplyLegacy(t *testing.T) {
	needLegacy(t)
	need(t, "iptables-legacy")
	const want = `-P PREROUTING ACCEPT
-P INPUT ACCEPT
-P OUTPUT ACCEPT
-P POSTROUTING ACCEPT
-N K3S9P-POSTROUTING
-N K3S9P-PREROUTING
-A PREROUTING -j K3S9P-PREROUTING
-A PREROUTING -s 198.51.100.1/32 -j RETURN
-A POSTROUTING -j K3S9P-POSTROUTING
-A K3S9P-POSTROUTING -s 10.42.0.0/16 -o eth0 -p udp -j SNAT --to-source 192.0.2.2
-A K3S9P-PREROUTING -d 10.42.0.0/16 -i cni0 -j RETURN
-A K3S9P-PREROUTING -d 10.43.0.0/16 -i cni0 -j RETURN
-A K3S9P-PREROUTING -i cni0 -p tcp -j REDIRECT --to-ports 15001
`
	inOwnNetwork(t, func() error {
		if _, err := run("", "iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-s", "198.51.100.1", "-j", "RETURN"); err != nil {
			return err
		}
		shows := func(when string) error {
			if err := (Legacy{}).Verify(clusterRules); err != nil {
				return err
			}
			got, err := run("", "iptables-legacy", "-t", "nat", "-S")
			if err == nil && got != want {
				t.Errorf("%s: got\n%s\nwant\n%s", when, got, want)
			}
			return err
		}
		steps := []struct {
			name string
			do   func() error
		}{
			{"other rules", func() error { return Legacy{}.Apply(otherRules) }},
			{"once", func() error { return nil }},
			{"twice", func() error { return nil }},
			{"after somebody has come in front", func() error {
				rule := []string{"PREROUTING", "-s", "198.51.100.1", "-j", "RETURN"}
				_, deleted := run("", "iptables-legacy", append([]string{"-t", "nat", "-D"}, rule...)...)
				_, inserted := run("", "iptables-legacy", append([]string{"-t", "nat", "-I"}, rule...)...)
				return errors.Join(deleted, inserted)
			}},
			{"after somebody has jumped to us again", func() error {
				_, err := run("", "iptables-legacy", "-t", "nat", "-I", "POSTROUTING", "-j", "K3S9P-POSTROUTING")
				return err
			}},
			{"after somebody has flushed our chain", func() error {
				_, err := run("", "iptables-legacy", "-t", "nat", "-F", "K3S9P-PREROUTING")
				return err
			}},
			{"after somebody has added to it", func() error {
				_, err := run("", "iptables-legacy", "-t", "nat", "-A", "K3S9P-PREROUTING", "-j", "ACCEPT")
				return err
			}},
			{"after somebody has deleted the jump", func() error {
				_, err := run("", "iptables-legacy", "-t", "nat", "-D", "PREROUTING", "-j", "K3S9P-PREROUTING")
				return err
			}},
		}
		for _, step := range steps {
			if err := step.do(); err != nil {
				return err
			}
			if err := (Legacy{}).Apply(clusterRules); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if err := shows(step.name); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
		}
		for range 2 {
			if err := (Legacy{}).Remove(); err != nil {
				return err
			}
		}
		got, err := run("", "iptables-legacy", "-t", "nat", "-S")
		if strings.Contains(got, "K3S9P") || !strings.Contains(got, "198.51.100.1") {
			t.Errorf("after Remove: %s", got)
		}
		return err
	})
}

// What is there already is not written again: its counters go on.
func TestApplyAgainWritesNothing(t *testing.T) {
	needLegacy(t)
	inOwnNetwork(t, func() error {
		if err := (Legacy{}).Apply(clusterRules); err != nil {
			return err
		}
		s, err := openSocket("nat")
		if err != nil {
			return err
		}
		defer s.close()
		counted, err := s.readTable()
		if err != nil {
			return err
		}
		if err := s.addCounters(counted, bytes.Repeat([]byte{1}, len(counted.entries)*countersSize)); err != nil {
			return err
		}
		_, before, err := readNat()
		if err != nil {
			return err
		}
		if err := (Legacy{}).Apply(clusterRules); err != nil {
			return err
		}
		_, after, err := readNat()
		if !bytes.Equal(before, after) {
			t.Error("the counters of our rules have changed")
		}
		return err
	})
}

// Where nobody has a table nat, Remove makes none.
func TestRemoveUnused(t *testing.T) {
	needLegacy(t)
	inOwnNetwork(t, func() error {
		if _, err := os.Stat("/proc/thread-self/net/ip_tables_names"); err != nil {
			t.Log("this kernel, as gVisor, has the table always")
			return nil
		}
		if err := (Legacy{}).Remove(); err != nil {
			return err
		}
		if !unused("nat") {
			t.Error("Remove has made the table nat")
		}
		if err := (Legacy{}).Apply(clusterRules); err != nil {
			return err
		}
		if unused("nat") {
			t.Error("the table nat is there and counts as unused")
		}
		return nil
	})
}

// A table that got another rule after it was read is not overwritten.
func TestChangedMeanwhile(t *testing.T) {
	needLegacy(t)
	need(t, "iptables-legacy")
	inOwnNetwork(t, func() error {
		if err := staleWrite(); err == nil {
			t.Log("this kernel, as gVisor, does not tell that the table has changed")
			return nil
		} else if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		reads := 0
		sorted, err := byChain(clusterRules)
		if err != nil {
			return err
		}
		err = edit("nat", func(read *table) error {
			reads++
			if reads == 1 {
				// One that does not heed the lock.
				if _, err := run("", "env", "XTABLES_LOCKFILE="+filepath.Join(t.TempDir(), "other"), "iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-s", "198.51.100.1", "-j", "RETURN"); err != nil {
					return err
				}
			}
			for c, rules := range sorted {
				if err := read.install(c, rules); err != nil {
					return err
				}
			}
			return nil
		}, func(read *table) error { return verify(read, tables[0].chains, sorted) })
		if err != nil {
			return err
		}
		if reads != 2 {
			t.Errorf("the table was read %d times, not 2", reads)
		}
		shown, err := run("", "iptables-legacy", "-t", "nat", "-S")
		if !strings.Contains(shown, "-A OUTPUT -s 198.51.100.1/32 -j RETURN") {
			t.Errorf("a rule of somebody else is lost:\n%s", shown)
		}
		return err
	})
}

// staleWrite writes the table as if it had had another number of entries.
func staleWrite() error {
	s, err := openSocket("nat")
	if err != nil {
		return err
	}
	defer s.close()
	t, err := s.readTable()
	if err != nil {
		return err
	}
	t.layout.entries++
	return s.writeTable(t)
}

// Our chain stays where a rule of others jumps to it.
func TestRemoveLegacyInUse(t *testing.T) {
	needLegacy(t)
	need(t, "iptables-legacy")
	inOwnNetwork(t, func() error {
		if err := (Legacy{}).Apply(clusterRules); err != nil {
			return err
		}
		if _, err := run("", "iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-s", "198.51.100.1", "-j", "K3S9P-PREROUTING"); err != nil {
			return err
		}
		if err := (Legacy{}).Apply(clusterRules[2:]); err != nil { // that rule's jump follows the chain
			return err
		}
		if err := (Legacy{}).Remove(); err == nil || !strings.Contains(err.Error(), "which is not ours, jumps to chain K3S9P-PREROUTING") {
			t.Errorf("Remove: %v", err)
		}
		return Legacy{}.Verify(clusterRules[2:])
	})
}

// While we write the table, iptables(8) waits.
func TestLock(t *testing.T) {
	needLegacy(t)
	need(t, "iptables-legacy")
	inOwnNetwork(t, func() error {
		unlock, err := lock()
		if err != nil {
			return err
		}
		_, err = run("", "iptables-legacy", "-w", "1", "-t", "nat", "-N", "FOREIGN")
		if err == nil || !strings.Contains(err.Error(), "xtables lock") {
			t.Errorf("iptables has not seen the lock: %v", err)
		}
		unlock()
		_, err = run("", "iptables-legacy", "-w", "1", "-t", "nat", "-N", "FOREIGN")
		return err
	})
}

// Other rules than those that are there, even as many, are not there, and the error
// says which.
func TestVerifyLegacy(t *testing.T) {
	needLegacy(t)
	inOwnNetwork(t, func() error {
		if err := (Legacy{}).Apply(clusterRules); err != nil {
			return err
		}
		moved := append([]Rule{}, clusterRules...)
		moved[3].Target = SNAT(uplink.Next())
		for _, test := range []struct {
			rules []Rule
			want  string
		}{
			{moved, "chain K3S9P-POSTROUTING has not, or not as rule 1: " + moved[3].String()},
			{clusterRules[:2], "chain K3S9P-PREROUTING has 4 entries instead of 3"},
			{clusterRules[:3], "chain K3S9P-POSTROUTING is there"},
			{append(otherRules[2:3:3], clusterRules...), "there is no chain K3S9P-OUTPUT"},
		} {
			if err := (Legacy{}).Verify(test.rules); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		}
		return Legacy{}.Verify(clusterRules)
	})
}
