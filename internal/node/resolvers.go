package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

const machineResolver = "/etc/resolv.conf"

// chooseResolvers chooses the resolv.conf of the DNS server and that of pods with
// dnsPolicy Default: the machine's own where that will do, because the kubelet reads it
// for each pod anew.
func (n *Node) chooseResolvers() error {
	text, err := os.ReadFile(machineResolver)
	if errors.Is(err, os.ErrNotExist) {
		n.plan.Settings.Kubelet.Resolver = ""
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the machine's name servers: %w", err)
	}
	server, pods := resolversOf(string(text), n.cluster.DNS())
	write := func(name, changed string) (string, error) {
		if changed == string(text) {
			return machineResolver, nil
		}
		file := n.paths.etc(name)
		return file, writeFile(file, []byte(changed), 0o644)
	}
	if hasNameserver(server) {
		if n.upstream, err = write("resolv-server.conf", server); err != nil {
			return err
		}
	}
	n.plan.Settings.Kubelet.Resolver = machineResolver
	if n.options.has(dnsAddOn) {
		n.plan.Settings.Kubelet.Resolver, err = write("resolv-pods.conf", pods)
	}
	return err
}

// resolversOf returns a resolv.conf (resolv.conf(5)) for the DNS server, which must not
// ask itself, and one for pods: a name server at an address of loopback, as those of
// systemd-resolved and Docker are, is on the node, and in a pod it is the pod itself.
// The DNS server, which is a program of the node, asks it for them.
func resolversOf(text string, own netip.Addr) (server, pods string) {
	var forServer, forPods strings.Builder
	asksOwn := false
	for line := range strings.Lines(text) {
		address, ok := nameserver(line)
		switch {
		case !ok:
			forServer.WriteString(line)
			forPods.WriteString(line)
			continue
		case address != own:
			forServer.WriteString(line)
		}
		switch {
		case address != own && !address.IsLoopback() && !address.IsUnspecified():
			forPods.WriteString(line)
		case !asksOwn:
			asksOwn = true
			fmt.Fprintf(&forPods, "nameserver %v\n", own)
		}
	}
	return forServer.String(), forPods.String()
}

// nameserver returns the address of a line that has one.
func nameserver(line string) (netip.Addr, bool) {
	fields := strings.Fields(line)
	if len(fields) < 2 || fields[0] != "nameserver" {
		return netip.Addr{}, false
	}
	address, err := netip.ParseAddr(fields[1])
	return address, err == nil
}

func hasNameserver(text string) bool {
	for line := range strings.Lines(text) {
		if _, ok := nameserver(line); ok {
			return true
		}
	}
	return false
}
