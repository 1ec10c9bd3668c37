package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/atomicwriter"
	"github.com/vishvananda/netlink"

	"k3s9p/internal/hint"
	"k3s9p/internal/journal"
)

// format is the version of the data directory of a node with a control plane, and
// joinedFormat that of one that has joined: a k3s9p that knows no others would take it
// for a cluster of its own. One of a higher version is refused.
const (
	format       = 1
	joinedFormat = 2
)

// Cluster is what stays the same as long as the data directory exists, and which
// versions have used it.
type Cluster struct {
	Format       int          `json:"format"`
	Distribution string       `json:"distribution"`
	NodeName     string       `json:"nodeName"`
	ClusterCIDR  netip.Prefix `json:"clusterCIDR"`
	ServiceCIDR  netip.Prefix `json:"serviceCIDR"`
	Versions                  // of the newest that has brought it up
	// Server is the URL of the apiserver, on a node that has joined; a node with a control
	// plane has none.
	Server string `json:"server,omitempty"`
	// Pods is the part of the cluster CIDR that the server has given a node that has joined.
	Pods netip.Prefix `json:"podCIDR,omitzero"`
	// KubeProxy is what the server has said of kube-proxy last to a node that has joined; see
	// clusterSettings.
	KubeProxy bool `json:"kubeProxy,omitempty"`
}

// Joined reports whether the control plane is on another node.
func (c Cluster) Joined() bool { return c.Server != "" }

// Bridge is the device of the pod network; its address is the node's and the
// apiserver's: in gVisor pods do not reach the address of eth0.
const Bridge = "cni0"

// PodCIDR is the part of the cluster CIDR that this node's pods have: the first one on the
// node with the control plane. It is not valid before a node has joined.
func (c Cluster) PodCIDR() netip.Prefix {
	if c.Joined() {
		return c.Pods
	}
	return c.first()
}

// first is the part of the cluster CIDR that the node with the control plane has.
func (c Cluster) first() netip.Prefix {
	return netip.PrefixFrom(c.ClusterCIDR.Masked().Addr(), c.nodeBits())
}

// defaultNodeBits is the length of that of a node's part, where there is room for it.
const defaultNodeBits = 24

// nodeBits is the length of the prefix of a node's part of the cluster CIDR.
func (c Cluster) nodeBits() int { return max(c.ClusterCIDR.Bits(), defaultNodeBits) }

// Address is that of the bridge: the first one for pods.
func (c Cluster) Address() netip.Addr { return gatewayOf(c.PodCIDR()) }

// gatewayOf is the address of the bridge of a node whose pods have these addresses.
func gatewayOf(pods netip.Prefix) netip.Addr { return pods.Addr().Next() }

// APIService is the address of the Service kubernetes.default.
func (c Cluster) APIService() netip.Addr { return c.ServiceCIDR.Masked().Addr().Next() }

// DNS is the address of the cluster's DNS server: the tenth, as everywhere.
func (c Cluster) DNS() netip.Addr {
	address := c.ServiceCIDR.Masked().Addr()
	for range 10 {
		address = address.Next()
	}
	return address
}

// candidates are the networks that are tried when none is asked for: first what
// k3s uses.
var candidates = [][2]string{
	{"10.42.0.0/16", "10.43.0.0/16"}, {"10.142.0.0/16", "10.143.0.0/16"}, {"10.242.0.0/16", "10.243.0.0/16"},
	{"172.28.0.0/16", "172.29.0.0/16"}, {"192.168.240.0/22", "192.168.244.0/22"},
}

// settle reads the settings of an existing data directory, or chooses those of a
// new one. What is asked for must not contradict what exists.
func settle(p Paths, o Options, distribution string, routes []netip.Prefix) (Cluster, error) {
	there, err := readCluster(p)
	if err != nil {
		return Cluster{}, err
	}
	if there == nil {
		return choose(o, distribution, routes, resolvers())
	}
	if err := there.sameServer(p, o); err != nil {
		return Cluster{}, err
	}
	const purge = "k3s9p down --purge removes the cluster in it; --data-dir makes another one elsewhere"
	for _, same := range []struct{ what, asked, is string }{
		{"distribution", distribution, there.Distribution},
		{"node name", o.NodeName, there.NodeName},
		{"cluster CIDR", o.ClusterCIDR, there.ClusterCIDR.String()},
		{"service CIDR", o.ServiceCIDR, there.ServiceCIDR.String()},
	} {
		if same.asked != "" && same.asked != same.is {
			return Cluster{}, hint.Add(fmt.Errorf("the cluster in %s has the %s %s, not %s, and it cannot be changed", p.Data, same.what, same.is, same.asked), purge)
		}
	}
	for name, prefix := range map[string]netip.Prefix{"cluster CIDR": there.ClusterCIDR, "service CIDR": there.ServiceCIDR} {
		if route, ok := overlap(prefix, routes); ok {
			return Cluster{}, hint.Add(fmt.Errorf("the %s of the cluster in %s, %s, now overlaps with this machine's route to %s", name, p.Data, prefix, route), purge)
		}
	}
	return *there, nil
}

// readCluster returns nil for a directory that holds no cluster yet.
func readCluster(p Paths) (*Cluster, error) {
	data, err := os.ReadFile(p.cluster())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var c Cluster
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return nil, hint.Add(fmt.Errorf("read the settings of the cluster in %s: %w", p.Data, err), "k3s9p down --purge removes it")
	}
	if c.Format > joinedFormat {
		return nil, hint.Add(fmt.Errorf("the data directory %s is of format %d, and this k3s9p knows formats up to %d", p.Data, c.Format, joinedFormat), "use the newer k3s9p that made it, or another --data-dir")
	}
	return &c, nil
}

// choose makes the settings of a new cluster. What is not asked for does not take the
// addresses of others that are reached by the default route.
func choose(o Options, distribution string, routes, others []netip.Prefix) (Cluster, error) {
	c := Cluster{Format: format, Distribution: distribution}
	var err error
	if c.NodeName, err = o.nodeName(); err != nil {
		return Cluster{}, err
	}
	if o.Joining != nil {
		return c.joining(*o.Joining, routes)
	}
	for _, candidate := range candidates {
		if c.ClusterCIDR, err = prefix("cluster CIDR", "--cluster-cidr", o.ClusterCIDR, candidate[0]); err != nil {
			return Cluster{}, err
		}
		if c.ServiceCIDR, err = prefix("service CIDR", "--service-cidr", o.ServiceCIDR, candidate[1]); err != nil {
			return Cluster{}, err
		}
		if err = free(c, routes); err == nil && o.ClusterCIDR == "" && o.ServiceCIDR == "" {
			err = free(c, others)
		}
		if err == nil {
			return c, nil
		}
		if o.ClusterCIDR != "" && o.ServiceCIDR != "" {
			break
		}
	}
	return Cluster{}, err
}

// The sizes of a network that are of use, in bits of its prefix: the smallest has room
// for DNS, the apiserver and a few dozen pods or Services.
const (
	largest  = 8
	smallest = 26
)

func prefix(what, flag, asked, otherwise string) (netip.Prefix, error) {
	if asked == "" {
		return netip.MustParsePrefix(otherwise), nil
	}
	p, err := netip.ParsePrefix(asked)
	switch {
	case err != nil:
		return p, hint.Add(fmt.Errorf("the %s is not a network: %w", what, err), "%s %s", flag, otherwise)
	case !p.Addr().Is4():
		return p, hint.Add(fmt.Errorf("the %s %s is not IPv4", what, p), "%s %s", flag, otherwise)
	case p != p.Masked():
		return p, hint.Add(fmt.Errorf("the %s %s has bits set behind its prefix", what, p), "%s %s", flag, p.Masked())
	case p.Bits() > smallest || p.Bits() < largest:
		return p, hint.Add(fmt.Errorf("the %s %s has a prefix of %d bits: it is %d to %d", what, p, p.Bits(), largest, smallest), "%s %s", flag, otherwise)
	}
	return p, nil
}

// free returns an error if the networks of a cluster overlap with each other or
// with what the machine has a route to.
func free(c Cluster, routes []netip.Prefix) error {
	if c.ClusterCIDR.Overlaps(c.ServiceCIDR) {
		return hint.Add(fmt.Errorf("the cluster CIDR %s and the service CIDR %s overlap", c.ClusterCIDR, c.ServiceCIDR), "--cluster-cidr and --service-cidr name two networks")
	}
	for _, p := range []struct {
		what, flag string
		prefix     netip.Prefix
	}{{"cluster CIDR", "--cluster-cidr", c.ClusterCIDR}, {"service CIDR", "--service-cidr", c.ServiceCIDR}} {
		if route, ok := overlap(p.prefix, routes); ok {
			return hint.Add(fmt.Errorf("the %s %s overlaps with this machine's route to %s", p.what, p.prefix, route), "%s names another network", p.flag)
		}
	}
	return nil
}

func overlap(p netip.Prefix, routes []netip.Prefix) (netip.Prefix, bool) {
	for _, route := range routes {
		if p.Overlaps(route) {
			return route, true
		}
	}
	return netip.Prefix{}, false
}

// routesOf returns the networks that this machine has routes to, except for what a node
// that was killed has left, and except for the default route.
func routesOf(p Paths) ([]netip.Prefix, error) {
	list, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("ask the kernel for its routes (netlink): %w", err), "the pod network needs netlink and CAP_NET_ADMIN")
	}
	own := -1
	if link, err := netlink.LinkByName(Bridge); err == nil {
		own = link.Attrs().Index
	}
	left := journal.Again(p.journal(), routesRecord, routesChange{})
	var routes []netip.Prefix
	for _, route := range list {
		if route.Dst == nil || route.LinkIndex == own || left.has(route) {
			continue
		}
		address, ok := netip.AddrFromSlice(route.Dst.IP.To4())
		bits, _ := route.Dst.Mask.Size()
		if ok && bits > 0 {
			routes = append(routes, netip.PrefixFrom(address, bits))
		}
	}
	return routes, nil
}

// resolvers are the addresses of this machine's name servers. A sandbox that is a pod may
// have one at the very address that a cluster in it would give its own.
func resolvers() (hosts []netip.Prefix) {
	text, err := os.ReadFile(machineResolver)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if address, ok := nameserver(line); ok && address.Is4() {
			hosts = append(hosts, netip.PrefixFrom(address, address.BitLen()))
		}
	}
	return hosts
}

func (c Cluster) save(p Paths) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(p.cluster(), append(data, '\n'), 0o644)
}

// writeFile replaces a file as a whole, and makes its directory.
func writeFile(name string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return atomicwriter.WriteFile(name, data, mode)
}
