package svcproxy

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// datagramNetwork is a pod with two addresses, and a router that gives the egress proxy
// what the pod sends out of the cluster. On Linux a raw socket gets what is for the machine
// itself, so the network outside is one of the router's own (ip-route(8), local).
type datagramNetwork struct {
	pod, outside *namespace
	egress       *UDP
}

var otherPod = podAddress.Next()

func newDatagramNetwork(t testing.TB, policy Policy, options Options) *datagramNetwork {
	t.Helper()
	n := &datagramNetwork{pod: newNamespace(t), outside: newNamespace(t)}
	router := newNamespace(t)
	connect(t, n.pod, router, "cni0", podAddress, gateway, 65535)
	n.pod.do(t, func() error {
		return errors.Join(addAddress("eth0", otherPod, 24), addDefaultRoute("eth0", gateway))
	})
	n.outside.do(t, func() error { return errors.Join(addAddress("lo", elsewhere, 32), addAddress("lo", outside, 32)) })
	options.Dial = n.outside.Dial
	router.do(t, func() (err error) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, prefix := range []string{"192.0.2.0/24", "198.51.100.0/24", "224.0.0.0/4", "169.254.0.0/16"} {
			_, dst, err := net.ParseCIDR(prefix)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}); err != nil {
				return err
			}
		}
		within := Within{Pods: netip.PrefixFrom(podAddress, 24).Masked(), Cluster: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/15")}}
		n.egress, err = ListenEgressUDP("cni0", within, policy, options)
		return err
	})
	t.Cleanup(func() { closeNow(t, n.egress) })
	return n
}

// serve answers datagrams outside, with a word before each.
func (n *datagramNetwork) serve(t testing.TB, at netip.Addr, word string) (address netip.AddrPort) {
	t.Helper()
	n.outside.do(t, func() error {
		address = answerUDP(t, netip.AddrPortFrom(at, 0), word)
		return nil
	})
	return address
}

// client is a socket of the pod. It is not connected: the router says that nobody listens.
func (n *datagramNetwork) client(t testing.TB, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	n.pod.do(t, func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(limit))
	return conn
}

// ask sends a datagram and checks the next one that comes, and from where.
func ask(t testing.TB, client *net.UDPConn, server netip.AddrPort, question, want string) {
	t.Helper()
	if _, err := client.WriteToUDPAddrPort([]byte(question), server); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64<<10)
	size, from, err := client.ReadFromUDPAddrPort(buffer)
	if got := string(buffer[:size]); err != nil || got != want || from != server {
		t.Fatalf("%.20q to %v: %.20q (%d bytes) from %v, %v", question, server, got, len(got), from, err)
	}
}

// Two pods that send from the same port, and each to two servers.
func TestDatagramsOutOfTheClusterAreKeptApart(t *testing.T) {
	checkNothingLeft(t)
	n := newDatagramNetwork(t, Policy{}, Options{})
	one, two := n.serve(t, elsewhere, "one "), n.serve(t, outside, "two ")
	clients := map[string]*net.UDPConn{
		"pod ":   n.client(t, netip.AddrPortFrom(podAddress, 40000)),
		"other ": n.client(t, netip.AddrPortFrom(otherPod, 40000)),
	}
	for _, text := range []string{"", "question", strings.Repeat("x", 3000), strings.Repeat("x", 60000)} {
		for name, client := range clients {
			ask(t, client, one, name+text, "one "+name+text)
			ask(t, client, two, name+text, "two "+name+text)
		}
	}
	if got := n.egress.Counters(); got.Total != 4 || got.Open != 4 {
		t.Errorf("there are not four clients: %+v", got)
	}
}

func TestSilentDatagramsOutOfTheClusterAreForgotten(t *testing.T) {
	checkNothingLeft(t)
	n := newDatagramNetwork(t, Policy{}, Options{UDPIdleTimeout: 100 * time.Millisecond})
	server := n.serve(t, elsewhere, "")
	client := n.client(t, netip.AddrPortFrom(podAddress, 0))
	for range 2 {
		ask(t, client, server, "question", "question")
		await(t, "the end of the client's socket", func() bool { return n.egress.Counters().Open == 0 })
	}
}

func TestLimitOfDatagramsOutOfTheCluster(t *testing.T) {
	checkNothingLeft(t)
	n := newDatagramNetwork(t, Policy{}, Options{MaxFlows: 2})
	client := n.client(t, netip.AddrPortFrom(podAddress, 0))
	for range 3 {
		server := n.serve(t, elsewhere, "")
		ask(t, client, server, "question", "question")
	}
	await(t, "the end of the most silent one", func() bool { return n.egress.Counters().Open == 2 })
}

// What the policy refuses is counted; what is none of the proxy's is not, of those that the
// kernel delivers.
func TestDatagramsThatDoNotLeave(t *testing.T) {
	checkNothingLeft(t)
	n := newDatagramNetwork(t, Policy{Refuse: []netip.Prefix{netip.PrefixFrom(outside, 32)}}, Options{})
	client := n.client(t, netip.AddrPortFrom(podAddress, 0))
	for _, to := range []string{gateway.String(), "224.0.0.251", outside.String(), "169.254.169.254"} {
		if _, err := client.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(netip.MustParseAddr(to), 9)); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
	}
	ask(t, client, n.serve(t, elsewhere, ""), "last", "last")
	if got := n.egress.Counters(); got.Total != 3 || got.Refused != 2 || got.Open != 1 {
		t.Errorf("not one that left and two that were refused: %+v", got)
	}
}

func TestLeaves(t *testing.T) {
	own := &net.IPNet{IP: net.IPv4(192, 0, 2, 9), Mask: net.CIDRMask(24, 32)}
	d := &rawDatagrams{
		within: Within{Pods: netip.MustParsePrefix("10.42.1.0/24"), Cluster: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}},
		own:    []net.Addr{own}, outdated: time.Now().Add(time.Hour),
	}
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"10.42.1.5", "198.51.100.1", true},
		{"10.42.1.5", "192.0.2.8", true},
		{"10.42.1.5", "10.44.0.1", true},
		{"10.42.1.5", "192.0.2.9", false},
		{"10.42.1.5", "10.42.1.6", false},
		{"10.42.1.5", "10.42.2.6", false},
		{"10.42.1.5", "10.43.0.10", false},
		{"10.42.1.5", "224.0.0.251", false},
		{"10.42.1.5", "255.255.255.255", false},
		{"10.42.2.5", "198.51.100.1", false},
		{"198.51.100.1", "10.42.1.5", false},
		{"0.0.0.0", "255.255.255.255", false},
	} {
		if got := d.leaves(netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)); got != c.want {
			t.Errorf("from %s to %s: %v", c.from, c.to, got)
		}
	}
}
