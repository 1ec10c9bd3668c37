package probe

import (
	"context"
	"errors"
	"fmt"
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
	ownLock()
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

// MasqueradePods gives the kernel the rules for pods to leave by and sends a packet, in
// network namespaces of its own: that rules are taken does not mean that they work.
func MasqueradePods(ctx context.Context, backend nat.Backend) error {
	return inNetwork(ctx, "masquerade-pods", backend.String())
}

// ProxyPods is the same for the way that needs a proxy.
func ProxyPods(ctx context.Context, backend nat.Backend) error {
	return inNetwork(ctx, "proxy-pods", backend.String())
}

func backendOf(name string, try func(nat.Backend) error) error {
	ownLock()
	for _, backend := range nat.Backends() {
		if backend.String() == name {
			return try(backend)
		}
	}
	return fmt.Errorf("%w: there is no back end %q", ErrUnclear, name)
}

func oneLine(output []byte) string { return strings.Join(strings.Fields(string(output)), " ") }
