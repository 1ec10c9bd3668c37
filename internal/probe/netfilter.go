package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/google/nftables"

	"k3s9p/internal/nat"
)

// ErrNoIptables says that there is no program to make rules with.
var ErrNoIptables = errors.New("neither iptables-legacy nor iptables is installed")

// Iptables adds a rule, in the words of iptables(8), in a network namespace of its
// own.
func Iptables(ctx context.Context, rule string) error {
	program, err := iptables()
	if err != nil {
		return err
	}
	return inNetwork(ctx, "iptables", program, rule)
}

func addRule(program, rule string) error {
	output, err := exec.Command(program, strings.Fields(rule)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, rule, err, oneLine(output))
	}
	return nil
}

// iptables prefers the legacy program: gVisor has no nf_tables, which the other
// one is made for.
func iptables() (string, error) {
	for _, name := range []string{"iptables-legacy", "iptables"} {
		if _, err := exec.LookPath(name); err == nil {
			return name, nil
		}
	}
	return "", ErrNoIptables
}

// Nftables adds a table, in a network namespace of its own.
func Nftables(ctx context.Context) error { return inNetwork(ctx, "nftables") }

func nftablesTable() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("talk to nf_tables: %w", err)
	}
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "k3s9p"})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("add a table to nf_tables: %w", err)
	}
	return nil
}

// Masquerade gives the kernel a rule with the target MASQUERADE, in a network
// namespace of its own. No program is needed: the node writes its rules so as well.
func Masquerade(ctx context.Context) error { return inNetwork(ctx, "masquerade") }

func masqueradeRule() error {
	rules := []nat.Rule{{Chain: nat.Postrouting, Source: netip.MustParsePrefix("192.0.2.0/24"), Target: nat.Masquerade()}}
	var failures error
	for _, backend := range nat.Backends() {
		err := backend.Apply(rules)
		if err == nil {
			return nil
		}
		failures = errors.Join(failures, err)
	}
	return failures
}

func oneLine(output []byte) string { return strings.Join(strings.Fields(string(output)), " ") }
