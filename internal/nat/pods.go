package nat

import "net/netip"

// MasqueradePods is the ordinary way out for pods: what leaves the node otherwise
// than by their bridge gets the node's address, except for what goes to pods of other
// nodes, within the given network.
func MasqueradePods(bridge string, pods, within netip.Prefix) []Rule {
	return []Rule{
		{Chain: Postrouting, Source: pods, Destination: within, Target: Return()},
		{Chain: Postrouting, NotOut: bridge, Source: pods, Target: Masquerade()},
	}
}

// Bridged is for a kernel whose bridge takes frames for others as its own as well: what it
// has delivered is not forwarded once more. Not for any other kernel, nor together with
// rules that change the destination of what pods send to another pod: bridged packets may
// pass FORWARD (br_netfilter), and what is for such a pod does.
func Bridged(bridge string) []Rule {
	return []Rule{{Chain: Forward, In: bridge, Out: bridge, Target: Drop()}}
}

// Uplink is the device that leads out, and its address.
type Uplink struct {
	Name    string
	Address netip.Addr
}

// ProxyPods is the way out where the kernel has no MASQUERADE: TCP goes to a proxy at
// a port of the bridge, UDP leaves with the address of the uplink, if there is one.
// Nothing is changed of what goes to pods of this node and to the services, and nothing of
// UDP to pods of other nodes, within the given network. TCP to those goes to the proxy as
// well: packets as large as the MTU of the bridge do not pass the network in between, and
// a gVisor of before 2026-09 does not say how large they may be.
func ProxyPods(bridge string, services netip.Prefix, proxy uint16, pods, within netip.Prefix, up *Uplink) []Rule {
	rules := []Rule{
		{Chain: Prerouting, In: bridge, Destination: pods, Target: Return()},
		{Chain: Prerouting, In: bridge, Destination: services, Target: Return()},
		{Chain: Prerouting, In: bridge, Protocol: TCP, Target: Redirect(proxy)},
	}
	if up != nil {
		rules = append(rules,
			Rule{Chain: Postrouting, Source: pods, Destination: within, Target: Return()},
			Rule{Chain: Postrouting, Out: up.Name, Source: pods, Protocol: UDP, Target: SNAT(up.Address)})
	}
	return rules
}
