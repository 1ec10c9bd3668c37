package node

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// machineResolver names the servers that resolve names (resolv.conf(5)).
const machineResolver = "/etc/resolv.conf"

// resolvConf is a resolv.conf: the machine's own, or one that is written because that
// will not do. Without a file there is none.
type resolvConf struct{ file, text string }

func (c resolvConf) write() error {
	if c.file == "" || c.file == machineResolver {
		return nil
	}
	return writeFile(c.file, []byte(c.text), 0o644)
}

// chooseResolvers chooses the resolv.conf of the DNS server and that of pods with
// dnsPolicy Default: the machine's own where that will do, because the kubelet reads it
// for each pod anew. In namespaces of a node's own only the DNS server is sure to
// reach others by UDP. Nothing is written yet.
func chooseResolvers(p Paths, o Options, own netip.Addr, rootless bool) (server, pods resolvConf, err error) {
	text, err := os.ReadFile(machineResolver)
	if errors.Is(err, os.ErrNotExist) {
		return server, pods, nil
	}
	if err != nil {
		return server, pods, fmt.Errorf("read the machine's name servers: %w", err)
	}
	if rootless && o.Network != NetworkNone && firstResolver(bytes.NewReader(text)).IsLoopback() {
		text = []byte(gatewayResolver) // as it will be in there: see loopbackResolver
	}
	choose := func(name, changed string) resolvConf {
		if changed == string(text) {
			return resolvConf{file: machineResolver}
		}
		return resolvConf{p.etc(name), changed}
	}
	forServer, forPods := resolversOf(string(text), own, rootless)
	if hasNameserver(forServer) && o.Network != NetworkNone {
		server = choose("resolv-server.conf", forServer)
	}
	pods = resolvConf{file: machineResolver}
	if o.has(dnsAddOn) {
		pods = choose("resolv-pods.conf", forPods)
	}
	return server, pods, nil
}

// resolversOf returns a resolv.conf (resolv.conf(5)) for the DNS server, which must not
// ask itself, and one for pods: a name server at an address of loopback, as those of
// systemd-resolved and Docker are, is on the node, and in a pod it is the pod itself.
// The DNS server, which is a program of the node, asks it for them, and where no pod
// reaches another server it asks all of them.
func resolversOf(text string, own netip.Addr, onlyOwn bool) (server, pods string) {
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
		case address != own && !onlyOwn && !address.IsLoopback() && !address.IsUnspecified():
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
