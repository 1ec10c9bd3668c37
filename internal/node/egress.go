package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"k3s9p/internal/nat"
	"k3s9p/internal/svcproxy"
)

// jumbo is the MTU of the pod network where packets never leave it but by the
// proxy: gVisor drops segments that it has put together itself if they are larger
// than the MTU (gvisor#14011), so that with the default one pods exchange less
// than 1 MB/s.
const jumbo = 65535

// egress is how pods reach what is outside of the cluster.
type egress struct {
	backend nat.Backend
	how     string
	proxied bool          // TCP goes through the proxy
	proxy   *svcproxy.TCP // when it is open
}

// masquerade is the ordinary way: the kernel gives what leaves the node the node's
// address.
func (c Cluster) masquerade() []nat.Rule {
	return []nat.Rule{{Chain: nat.Postrouting, NotOut: Bridge, Source: c.PodCIDR(), Target: nat.Masquerade()}}
}

// redirect is the way for a kernel without MASQUERADE: TCP goes to the proxy at a
// port of the bridge, UDP leaves with the address of the uplink. Within the cluster
// nothing is changed.
func (c Cluster) redirect(proxy uint16, up *uplink) []nat.Rule {
	var rules []nat.Rule
	for _, within := range []netip.Prefix{c.ClusterCIDR, c.ServiceCIDR} {
		rules = append(rules, nat.Rule{Chain: nat.Prerouting, In: Bridge, Destination: within, Target: nat.Return()})
	}
	rules = append(rules, nat.Rule{Chain: nat.Prerouting, In: Bridge, Protocol: nat.TCP, Target: nat.Redirect(proxy)})
	if up != nil {
		rules = append(rules, nat.Rule{Chain: nat.Postrouting, Out: up.name, Source: c.PodCIDR(), Protocol: nat.UDP, Target: nat.SNAT(up.address)})
	}
	return rules
}

// uplink is the device of the default route.
type uplink struct {
	name    string
	address netip.Addr
}

// findUplink returns nil where there is no default route: nothing is outside.
func findUplink() (*uplink, error) {
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
	return &uplink{link.Attrs().Name, address}, nil
}

// chooseEgress finds out which way this kernel takes. It changes nothing.
func (n *Node) chooseEgress() error {
	if found, err := nat.Detect(n.cluster.masquerade()); err == nil {
		n.egress = egress{backend: found.Backend, how: "masquerade by " + found.Backend.String()}
		return nil
	}
	up, err := findUplink()
	if err != nil {
		return err
	}
	found, err := nat.Detect(n.cluster.redirect(1, up))
	if err != nil {
		n.log.Warn("pods reach nothing outside of the cluster", "error", err)
		n.egress = egress{how: "none: this kernel takes no nat rules"}
		return nil
	}
	n.settings.Network.MTU = jumbo
	n.egress = egress{backend: found.Backend, proxied: true, how: "TCP by a proxy in userspace, UDP by " + found.Backend.String()}
	if up == nil {
		n.egress.how += " (there is no default route)"
	}
	return nil
}

// openEgress lets pods out. The bridge has to be there.
func (n *Node) openEgress(context.Context) error {
	if n.egress.backend == nil {
		return nil
	}
	rules := n.cluster.masquerade()
	if n.egress.proxied {
		proxy, err := svcproxy.ListenEgress(netip.AddrPortFrom(n.cluster.Address(), 0), svcproxy.Policy{}, svcproxy.Options{Log: n.log, Dial: n.dialer()})
		if err != nil {
			return err
		}
		n.egress.proxy = proxy
		up, err := findUplink()
		if err != nil {
			return err
		}
		rules = n.cluster.redirect(proxy.Addr().Port(), up)
	}
	_, err := os.Lstat(xtablesLock)
	if err := n.paths.journal().Record("nat", natChange{n.egress.backend.String(), errors.Is(err, os.ErrNotExist)}); err != nil {
		return err
	}
	return n.egress.backend.Apply(rules)
}

// natChange is the record of rules; which they are the kernel knows.
type natChange struct {
	Backend string `json:"backend"`
	// Lock says that the lock of iptables(8) did not exist, and is to go again.
	Lock bool `json:"lock"`
}

const xtablesLock = "/run/xtables.lock"

// closeEgress ends the proxy; connections that are open get a moment.
func (n *Node) closeEgress() {
	if n.egress.proxy == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.egress.proxy.Close(ctx); err != nil {
		n.log.Info("connections of pods were cut", "error", err)
	}
}

// removeRules takes the rules away that are recorded.
func removeRules(p Paths) error {
	var change natChange
	recorded, sameBoot, err := p.journal().Read("nat", &change)
	if err != nil || !recorded {
		return err
	}
	var failures error
	for _, backend := range nat.Backends() {
		failures = errors.Join(failures, backend.Remove())
	}
	if change.Lock && sameBoot {
		if err := os.Remove(xtablesLock); err != nil && !errors.Is(err, os.ErrNotExist) {
			failures = errors.Join(failures, err)
		}
	}
	if failures != nil {
		return failures
	}
	return p.journal().Forget("nat")
}
