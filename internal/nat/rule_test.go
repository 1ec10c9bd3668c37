package nat

import (
	"net/netip"
	"strings"
	"testing"
)

var (
	pods     = netip.MustParsePrefix("10.42.0.0/16")
	services = netip.MustParsePrefix("10.43.0.0/16")
	uplink   = netip.MustParseAddr("192.0.2.2")
)

// clusterRules are those of a node in gVisor: TCP of the pods to a proxy, except to
// the cluster, and UDP with the node's address.
var clusterRules = []Rule{
	{Chain: Prerouting, In: "cni0", Destination: pods, Target: Return()},
	{Chain: Prerouting, In: "cni0", Destination: services, Target: Return()},
	{Chain: Prerouting, In: "cni0", Protocol: TCP, Target: Redirect(15001)},
	{Chain: Postrouting, Out: "eth0", Source: pods, Protocol: UDP, Target: SNAT(uplink)},
}

// otherRules have what clusterRules have not.
var otherRules = []Rule{
	{Chain: Prerouting, In: "eth0", Protocol: TCP, DestinationPort: 8080, Target: DNAT(netip.MustParseAddrPort("10.42.0.7:80"))},
	{Chain: Prerouting, In: "eth0", Protocol: UDP, DestinationPort: 53, Target: DNAT(netip.MustParseAddrPort("10.42.0.8:5353"))},
	{Chain: Output, Destination: netip.PrefixFrom(uplink, 32), Protocol: TCP, DestinationPort: 8080, Target: DNAT(netip.MustParseAddrPort("10.42.0.7:80"))},
	{Chain: Output, Out: "lo", Protocol: UDP, DestinationPort: 5300, Target: Redirect(53)},
	{Chain: Postrouting, NotOut: "cni0", Source: pods, Protocol: TCP, Target: SNAT(uplink)},
	{Chain: Forward, In: "cni0", Out: "cni0", Target: Drop()},
}

func TestRuleString(t *testing.T) {
	var got []string
	for _, rule := range append(append([]Rule{}, clusterRules...), otherRules...) {
		got = append(got, rule.String())
	}
	want := `-A PREROUTING -i cni0 -d 10.42.0.0/16 -j RETURN
-A PREROUTING -i cni0 -d 10.43.0.0/16 -j RETURN
-A PREROUTING -i cni0 -p tcp -j REDIRECT --to-ports 15001
-A POSTROUTING -o eth0 -s 10.42.0.0/16 -p udp -j SNAT --to-source 192.0.2.2
-A PREROUTING -i eth0 -p tcp --dport 8080 -j DNAT --to-destination 10.42.0.7:80
-A PREROUTING -i eth0 -p udp --dport 53 -j DNAT --to-destination 10.42.0.8:5353
-A OUTPUT -d 192.0.2.2/32 -p tcp --dport 8080 -j DNAT --to-destination 10.42.0.7:80
-A OUTPUT -o lo -p udp --dport 5300 -j REDIRECT --to-ports 53
-A POSTROUTING ! -o cni0 -s 10.42.0.0/16 -p tcp -j SNAT --to-source 192.0.2.2
-A FORWARD -i cni0 -o cni0 -j DROP`
	if joined := strings.Join(got, "\n"); joined != want {
		t.Errorf("got\n%s\nwant\n%s", joined, want)
	}
}

// A rule that a kernel would take and never match, or refuse without a word why, is
// refused with the reason.
func TestRuleCheck(t *testing.T) {
	for _, test := range []struct {
		rule Rule
		want string // in the error
	}{
		{Rule{Target: Return()}, "no such chain"},
		{Rule{Chain: Prerouting}, "no target"},
		{Rule{Chain: Postrouting, In: "cni0", Target: Masquerade()}, "an input interface in PREROUTING and FORWARD only"},
		{Rule{Chain: Prerouting, Out: "cni0", Target: Return()}, "no output interface in PREROUTING"},
		{Rule{Chain: Prerouting, NotOut: "cni0", Target: Return()}, "no output interface in PREROUTING"},
		{Rule{Chain: Postrouting, Out: "eth0", NotOut: "cni0", Target: Return()}, "both asked for and excluded"},
		{Rule{Chain: Prerouting, In: "a-name-of-16-byt", Target: Return()}, "not the name of an interface"},
		{Rule{Chain: Prerouting, In: "veth+", Target: Return()}, "not the name of an interface"},
		{Rule{Chain: Prerouting, Source: netip.MustParsePrefix("fd00::/64"), Target: Return()}, "not an IPv4 prefix"},
		{Rule{Chain: Prerouting, Destination: netip.PrefixFrom(uplink, 33), Target: Return()}, "not an IPv4 prefix"},
		{Rule{Chain: Prerouting, Protocol: 132, Target: Return()}, "neither TCP nor UDP"},
		{Rule{Chain: Prerouting, DestinationPort: 80, Target: Return()}, "a port needs a protocol"},
		{Rule{Chain: Prerouting, Target: Redirect(80)}, "a new port needs a protocol"},
		{Rule{Chain: Prerouting, Protocol: TCP, Target: Redirect(0)}, "port is 0"},
		{Rule{Chain: Postrouting, Protocol: TCP, Target: Redirect(80)}, "in PREROUTING and OUTPUT only"},
		{Rule{Chain: Forward, Protocol: TCP, Target: DNAT(netip.MustParseAddrPort("10.42.0.7:80"))}, "in PREROUTING and OUTPUT only"},
		{Rule{Chain: Prerouting, In: "cni0", Target: Drop()}, "in FORWARD only"},
		{Rule{Chain: Output, Protocol: TCP, Target: SNAT(uplink)}, "in POSTROUTING only"},
		{Rule{Chain: Postrouting, Protocol: TCP, Target: SNAT(netip.Addr{})}, "not an IPv4 address"},
		{Rule{Chain: Prerouting, Protocol: TCP, Target: DNAT(netip.MustParseAddrPort("[fd00::1]:80"))}, "not an IPv4 address"},
	} {
		err := test.rule.check()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want an error with %q", test.rule, err, test.want)
		}
	}
	for _, rule := range append(append([]Rule{}, clusterRules...), otherRules...) {
		if err := rule.check(); err != nil {
			t.Error(err)
		}
	}
}
