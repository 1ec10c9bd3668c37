package nat

import "net/netip"

// MasqueradePods is the ordinary way out for pods: what leaves the node otherwise
// than by their bridge gets the node's address.
func MasqueradePods(bridge string, pods netip.Prefix) []Rule {
	return []Rule{{Chain: Postrouting, NotOut: bridge, Source: pods, Target: Masquerade()}}
}

// Uplink is the device that leads out, and its address.
type Uplink struct {
	Name    string
	Address netip.Addr
}

// ProxyPods is the way out where the kernel has no MASQUERADE: TCP goes to a proxy at
// a port of the bridge, UDP leaves with the address of the uplink, if there is one.
// Within the given networks nothing is changed.
func ProxyPods(bridge string, within []netip.Prefix, proxy uint16, pods netip.Prefix, up *Uplink) []Rule {
	var rules []Rule
	for _, network := range within {
		rules = append(rules, Rule{Chain: Prerouting, In: bridge, Destination: network, Target: Return()})
	}
	rules = append(rules, Rule{Chain: Prerouting, In: bridge, Protocol: TCP, Target: Redirect(proxy)})
	if up != nil {
		rules = append(rules, Rule{Chain: Postrouting, Out: up.Name, Source: pods, Protocol: UDP, Target: SNAT(up.Address)})
	}
	return rules
}
