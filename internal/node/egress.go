package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"k3s9p/internal/config"
	"k3s9p/internal/nat"
	"k3s9p/internal/svcproxy"
)

// findUplink returns nil where there is no default route: nothing is outside.
func findUplink() (*nat.Uplink, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for its routes: %w", err)
	}
	i := slices.IndexFunc(routes, func(r netlink.Route) bool {
		if r.Dst != nil {
			if bits, _ := r.Dst.Mask.Size(); bits > 0 {
				return false
			}
		}
		return r.LinkIndex > 0
	})
	if i < 0 {
		return nil, nil
	}
	link, err := netlink.LinkByIndex(routes[i].LinkIndex)
	if err != nil {
		return nil, fmt.Errorf("find the device of the default route: %w", err)
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
	}
	if len(addresses) == 0 {
		return nil, nil
	}
	address, _ := netip.AddrFromSlice(addresses[0].IP.To4())
	return &nat.Uplink{Name: link.Attrs().Name, Address: address}, nil
}

// openEgress lets pods out, and keeps packets between them from being forwarded, as planned.
// The bridge has to be there.
func (n *Node) openEgress(context.Context) error {
	network := n.plan.Settings.Network
	var rules []nat.Rule
	switch network.Egress.Way {
	case config.NoEgress:
		n.log.Warn("pods reach nothing outside of the cluster")
	case config.Masquerade:
		rules = nat.MasqueradePods(Bridge, n.cluster.PodCIDR(), n.cluster.ClusterCIDR)
	case config.Proxy:
		options := svcproxy.Options{Log: n.log, Dial: n.dialer()}
		proxy, err := svcproxy.ListenEgress(netip.AddrPortFrom(n.cluster.Address(), 0), svcproxy.Policy{}, options)
		if err != nil {
			return err
		}
		n.egress = append(n.egress, proxy)
		up, err := n.datagrams(options)
		if err != nil {
			return err
		}
		rules = nat.ProxyPods(Bridge, n.cluster.ServiceCIDR, proxy.Addr().Port(), n.cluster.PodCIDR(), n.cluster.ClusterCIDR, up)
	}
	if network.Bridged != "" {
		rules = append(rules, nat.Bridged(Bridge)...)
	}
	if len(rules) == 0 {
		return nil
	}
	change := newNatChange(backendOf(network))
	change.rules = rules
	return n.paths.journal().Make(rulesRecord, change)
}

// proxy is a listener of svcproxy.
type proxy interface{ Close(context.Context) error }

// datagrams returns what those of pods leave by, or takes them itself, as planned.
func (n *Node) datagrams(options svcproxy.Options) (*nat.Uplink, error) {
	if !n.plan.Settings.Network.Egress.RawUDP {
		return findUplink()
	}
	within := svcproxy.Within{Pods: n.cluster.PodCIDR(), Cluster: []netip.Prefix{n.cluster.PodCIDR(), n.cluster.ClusterCIDR, n.cluster.ServiceCIDR}}
	proxy, err := svcproxy.ListenEgressUDP(Bridge, within, svcproxy.Policy{}, options)
	if err != nil {
		return nil, err
	}
	n.egress = append(n.egress, proxy)
	return nil, nil
}

// backendOf is what takes the rules, if there are any: it is one for all of them.
func backendOf(network config.Network) string { return cmp.Or(network.Egress.Backend, network.Bridged) }

// natChange is the record of rules; which they are the kernel knows.
type natChange struct {
	Backend string `json:"backend"`
	// Lock says that the lock of iptables(8) did not exist, and is to go again.
	Lock bool `json:"lock"`

	rules []nat.Rule
}

const xtablesLock = "/run/xtables.lock"

func newNatChange(backend string) natChange {
	_, err := os.Lstat(xtablesLock)
	return natChange{Backend: backend, Lock: errors.Is(err, os.ErrNotExist)}
}

func (c natChange) String() string { return "write nat rules with " + c.Backend }

func (c natChange) Make() error {
	for _, backend := range nat.Backends() {
		if backend.String() == c.Backend {
			return backend.Apply(c.rules)
		}
	}
	return fmt.Errorf("there is no %q to write nat rules with", c.Backend)
}

// Undo removes the rules, whatever wrote them.
func (c natChange) Undo(sameBoot bool) error {
	var failures error
	for _, backend := range nat.Backends() {
		failures = errors.Join(failures, backend.Remove())
	}
	if c.Lock && sameBoot {
		if err := os.Remove(xtablesLock); err != nil && !errors.Is(err, os.ErrNotExist) {
			failures = errors.Join(failures, err)
		}
	}
	return failures
}

// closeEgress ends the proxies; connections that are open get a moment.
func (n *Node) closeEgress() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, proxy := range n.egress {
		if err := proxy.Close(ctx); err != nil {
			n.log.Info("connections of pods were cut", "error", err)
		}
	}
}
