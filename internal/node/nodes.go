package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k3s9p/internal/hint"
)

// addressAnnotation of a Node is the address that other machines reach its own at. The
// Node's own address is that of its bridge, which they have a route to.
const addressAnnotation = "k3s9p.local/address"

func (n *Node) nodePath() string { return nodesPath + "/" + n.cluster.NodeName }

// advertised is the address that other nodes reach this machine at: the one that was
// asked for, the one that leads to the server, or that of the default route. It is not
// valid where there is none.
func advertised(o Options, c Cluster) (netip.Addr, error) {
	if o.AdvertiseAddress != "" {
		address, err := netip.ParseAddr(o.AdvertiseAddress)
		own := localAddresses()
		if err != nil || !slices.Contains(own, address) || address.IsLoopback() {
			return netip.Addr{}, hint.Add(fmt.Errorf("--advertise-address %s is no IPv4 address of this machine", o.AdvertiseAddress), "it has %v", own)
		}
		return address, nil
	}
	if !c.Joined() {
		up, err := findUplink()
		if err != nil || up == nil {
			return netip.Addr{}, err
		}
		return up.Address, nil
	}
	server, err := url.Parse(c.Server)
	if err != nil {
		return netip.Addr{}, err
	}
	conn, err := net.Dial("udp4", server.Host) // nothing is sent
	if err != nil {
		return netip.Addr{}, hint.Add(fmt.Errorf("find out which address leads to %s: %w", c.Server, err), "--advertise-address names it")
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// register makes the Node, or brings what others have to know of it up to date. The
// kubelet finds it and goes on with it.
func (n *Node) register(ctx context.Context) error {
	address := ""
	if n.advertise.IsValid() {
		address = n.advertise.String()
	}
	annotations := map[string]string{addressAnnotation: address}
	spec := corev1.NodeSpec{}
	if !n.cluster.Joined() { // a node that joins is given its part
		spec.PodCIDR, spec.PodCIDRs = n.cluster.PodCIDR().String(), []string{n.cluster.PodCIDR().String()}
	}
	var there corev1.Node
	err := n.client.get(ctx, n.nodePath(), &there)
	switch {
	case answered(err, http.StatusNotFound):
		var asked registration
		if asked, err = n.registration(); err != nil {
			break
		}
		spec.Taints = asked.taints
		err = n.client.ensure(ctx, nodesPath, &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: n.cluster.NodeName, Labels: asked.labels, Annotations: annotations}, Spec: spec,
		})
	case err == nil && (there.Annotations[addressAnnotation] != address || spec.PodCIDR != "" && there.Spec.PodCIDR != spec.PodCIDR):
		err = n.client.merge(ctx, n.nodePath(), map[string]any{"metadata": map[string]any{"annotations": annotations}, "spec": spec})
	}
	if err != nil {
		return fmt.Errorf("register the node %s: %w", n.cluster.NodeName, err)
	}
	return nil
}

// followNodes keeps the routes to the pods of other nodes, until ctx ends.
func (n *Node) followNodes(ctx context.Context) {
	n.follow(ctx, []string{nodesPath}, func() error { return n.syncNodes(ctx) })
}

// syncNodes brings the routes to the pods of other nodes to what the cluster has now.
func (n *Node) syncNodes(ctx context.Context) error {
	if !n.advertise.IsValid() {
		return nil
	}
	var nodes corev1.NodeList
	if err := n.client.get(ctx, nodesPath, &nodes); err != nil {
		return err
	}
	wanted := routesTo(nodes.Items, n.cluster)
	change := routesChange{Within: n.cluster.ClusterCIDR}
	if len(wanted) == 0 {
		return change.bring(nil, 0)
	}
	link, err := linkOf(n.advertise)
	if err == nil {
		err = n.paths.journal().Record(routesRecord, change)
	}
	if err != nil {
		return err
	}
	return change.bring(wanted, link)
}

// routesTo are the ways to the pods of the other nodes of a cluster. What a node says that
// is not its own to say is left out.
func routesTo(nodes []corev1.Node, c Cluster) map[netip.Prefix]netip.Addr {
	routes := make(map[netip.Prefix]netip.Addr)
	for _, node := range nodes {
		pods, err := netip.ParsePrefix(node.Spec.PodCIDR)
		address, addressErr := netip.ParseAddr(node.Annotations[addressAnnotation])
		if node.Name == c.NodeName || err != nil || addressErr != nil || !address.Is4() {
			continue
		}
		within := pods.Bits() >= c.ClusterCIDR.Bits() && c.ClusterCIDR.Contains(pods.Addr())
		if within && !pods.Overlaps(c.PodCIDR()) && !c.ClusterCIDR.Contains(address) && !c.ServiceCIDR.Contains(address) {
			routes[pods.Masked()] = address
		}
	}
	return routes
}

// linkOf is the device that has an address.
func linkOf(address netip.Addr) (int, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	for _, a := range list {
		if a.IP.Equal(address.AsSlice()) {
			return a.LinkIndex, nil
		}
	}
	return 0, fmt.Errorf("no network device has the address %s any more", address)
}

// routesChange is the record of routes to the pods of other nodes: all routes by a gateway
// within the cluster CIDR. There were none before, or the node had not come up.
type routesChange struct {
	Within netip.Prefix `json:"within"`
}

func (c routesChange) String() string {
	return fmt.Sprintf("add routes within %s to the pods of other nodes", c.Within)
}

// Make does nothing: which routes there are the cluster says.
func (c routesChange) Make() error { return nil }

func (c routesChange) Undo(sameBoot bool) error {
	if !sameBoot {
		return nil
	}
	return c.bring(nil, 0)
}

// has reports whether a route is one of these.
func (c routesChange) has(route netlink.Route) bool {
	if !c.Within.IsValid() || route.Dst == nil || route.Gw == nil {
		return false
	}
	address, ok := netip.AddrFromSlice(route.Dst.IP.To4())
	bits, _ := route.Dst.Mask.Size()
	return ok && bits >= c.Within.Bits() && c.Within.Contains(address)
}

// bring adds the routes that are missing, by a device, and removes the others.
func (c routesChange) bring(wanted map[netip.Prefix]netip.Addr, link int) error {
	list, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("ask the kernel for its routes: %w", err)
	}
	there := make(map[netip.Prefix]bool)
	var failures error
	for _, route := range list {
		if !c.has(route) {
			continue
		}
		address, _ := netip.AddrFromSlice(route.Dst.IP.To4())
		bits, _ := route.Dst.Mask.Size()
		to := netip.PrefixFrom(address, bits)
		if by, ok := wanted[to]; ok && route.Gw.Equal(by.AsSlice()) && route.LinkIndex == link {
			there[to] = true
			continue
		}
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			failures = errors.Join(failures, fmt.Errorf("remove the route to %s: %w", to, err))
		}
	}
	for to, by := range wanted {
		if there[to] {
			continue
		}
		route := &netlink.Route{Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}, Gw: by.AsSlice(), LinkIndex: link}
		if err := netlink.RouteAdd(route); err != nil {
			failures = errors.Join(failures, hint.Add(fmt.Errorf("add a route to %s by %s: %w", to, by, err),
				"all nodes have to be on one network; --advertise-address names this machine's address on it"))
		}
	}
	return failures
}
