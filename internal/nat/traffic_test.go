package nat

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gVisor has /proc/sys/net/ipv4/ip_forward for its first network namespace only
// (pkg/sentry/fsimpl/proc/tasks_sys.go, newSysNetDir).
var here = flag.Bool("here", false, "the node is in the network namespace of the test: for a sandbox of gVisor that is thrown away")

// namespace is a network namespace with a thread in it.
type namespace struct {
	calls chan func()
	tid   int
}

func newNamespace(t *testing.T) *namespace { return newThread(t, unix.CLONE_NEWNET) }

// newThread makes a thread with namespaces of its own (flags of unshare(2)).
func newThread(t *testing.T, flags int) *namespace {
	t.Helper()
	n := &namespace{calls: make(chan func())}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the namespace ends with the thread
		n.tid = unix.Gettid()
		started <- unix.Unshare(flags)
		for call := range n.calls {
			call()
		}
	}()
	t.Cleanup(func() { close(n.calls) })
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := n.do(func() error { return up("lo", "") }); err != nil {
		t.Fatal(err)
	}
	return n
}

// do calls f in the namespace.
func (n *namespace) do(f func() error) error {
	result := make(chan error, 1)
	n.calls <- func() { result <- f() }
	return <-result
}

// up gives a device an address, if there is one, and starts it.
func up(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if address != "" {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", address, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// connect joins two namespaces by a pair of devices with addresses.
func connect(a *namespace, nameA, addressA string, b *namespace, nameB, addressB string) error {
	other, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", b.tid))
	if err != nil {
		return err
	}
	defer other.Close()
	err = a.do(func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = nameA
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: nameB}); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		peer, err := netlink.LinkByName(nameB)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(peer, int(other.Fd())); err != nil {
			return fmt.Errorf("move %s: %w", nameB, err)
		}
		return up(nameA, addressA)
	})
	return errors.Join(err, b.do(func() error { return up(nameB, addressB) }))
}

// cluster is a pod, the node and the world outside:
//
//	pod 10.42.0.2 - 10.42.0.1 cni0, node, eth0 192.0.2.2 - 192.0.2.1 outside
//
// The world has 203.0.113.5 too, and a way to the pods: without rules it sees them.
type cluster struct{ pod, node, outside *namespace }

func newCluster(t *testing.T) cluster {
	t.Helper()
	needRoot(t)
	c := cluster{pod: newNamespace(t), outside: newNamespace(t)}
	if *here {
		c.node = newThread(t, 0)
		t.Cleanup(func() {
			for _, name := range []string{"cni0", "eth0"} {
				link, err := netlink.LinkByName(name)
				if err == nil {
					err = netlink.LinkDel(link)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	} else {
		c.node = newNamespace(t)
	}
	// gVisor finds no device by the gateway.
	route := func(device, gateway string) func() error {
		return func() error {
			link, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			everywhere := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Gw: net.ParseIP(gateway)})
		}
	}
	if err := errors.Join(
		connect(c.node, "cni0", "10.42.0.1/24", c.pod, "pod0", "10.42.0.2/24"),
		connect(c.node, "eth0", "192.0.2.2/24", c.outside, "world0", "192.0.2.1/24"),
		c.pod.do(route("pod0", "10.42.0.1")),
		c.node.do(route("eth0", "192.0.2.1")),
		c.node.do(func() error { return up("cni0", "10.43.0.1/32") }),
		c.outside.do(func() error { return up("lo", "203.0.113.5/32") }),
		c.outside.do(route("world0", "192.0.2.2")),
		c.node.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) }),
	); err != nil {
		t.Fatal(err)
	}
	return c
}

// patience is how long an answer may take, on a busy machine.
const patience = 10 * time.Second

// serve answers every TCP connection to a port of all addresses with the name of
// the server, the client's address and the destination that the client asked for.
func (n *namespace) serve(t *testing.T, name string, port int) {
	t.Helper()
	if err := n.do(func() error {
		listener, err := net.Listen("tcp4", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "%s from %s to %s", name, host(conn.RemoteAddr()), originalDestination(conn.(*net.TCPConn)))
				conn.Close()
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// servePackets answers the same, without the destination, to UDP.
func (n *namespace) servePackets(t *testing.T, name string, port int) {
	t.Helper()
	if err := n.do(func() error {
		conn, err := net.ListenPacket("udp4", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			buffer := make([]byte, 100)
			for {
				_, from, err := conn.ReadFrom(buffer)
				if err != nil {
					return
				}
				conn.WriteTo([]byte(name+" from "+host(from)), from)
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func host(address net.Addr) string { return netip.MustParseAddrPort(address.String()).Addr().String() }

// originalDestination is the destination before nat: a struct sockaddr_in
// (include/uapi/linux/netfilter_ipv4.h, SO_ORIGINAL_DST), or the error.
func originalDestination(conn *net.TCPConn) string {
	const soOriginalDst = 80
	raw, err := conn.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var answer string
	err = raw.Control(func(fd uintptr) {
		// The only wrapper that reads as many bytes.
		value, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, soOriginalDst)
		if err != nil {
			answer = err.Error()
			return
		}
		address := value.Multiaddr
		answer = netip.AddrPortFrom(netip.AddrFrom4([4]byte(address[4:8])), binary.BigEndian.Uint16(address[2:])).String()
	})
	if err != nil {
		return err.Error()
	}
	return answer
}

// ask returns what a server answers, or the error.
func (n *namespace) ask(network, address string) string {
	return n.askWithin(patience, network, address)
}

func (n *namespace) askWithin(limit time.Duration, network, address string) string {
	var answer string
	err := n.do(func() error {
		dialer := net.Dialer{Timeout: limit}
		conn, err := dialer.Dial(network, address)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(limit))
		if network == "udp4" {
			if _, err := conn.Write([]byte("?")); err != nil {
				return err
			}
		}
		buffer := make([]byte, 200)
		length, err := conn.Read(buffer)
		answer = string(buffer[:length])
		return err
	})
	if err != nil {
		return "error: " + err.Error()
	}
	return answer
}

// The kernel does what the rules say, on every back end that takes them.
func TestTraffic(t *testing.T) {
	needRoot(t)
	tcpSNAT := Rule{Chain: Postrouting, Out: "eth0", Source: pods, Protocol: TCP, Target: SNAT(uplink)}
	for _, test := range []struct {
		name             string
		rules            []Rule
		from             func(cluster) *namespace
		network, address string
		want             string // in the answer; without the rules it is not
	}{
		{"pod's TCP by SNAT", []Rule{tcpSNAT}, pod, "tcp4", "192.0.2.1:80", "outside from 192.0.2.2 to "},
		{"pod's UDP by SNAT", clusterRules, pod, "udp4", "192.0.2.1:53", "outside from 192.0.2.2"},
		{"pod's TCP by SNAT on other devices than its own", otherRules[4:], pod, "tcp4", "192.0.2.1:80", "outside from 192.0.2.2 to "},
		{"pod's TCP by MASQUERADE", []Rule{{Chain: Postrouting, Out: "eth0", Source: pods, Target: Masquerade()}}, pod, "tcp4", "192.0.2.1:80", "outside from 192.0.2.2 to "},
		{"pod's TCP to the proxy", clusterRules, pod, "tcp4", "203.0.113.5:80", "proxy from 10.42.0.2 to 203.0.113.5:80"},
		{"but one port only", []Rule{{Chain: Prerouting, In: "cni0", Protocol: TCP, DestinationPort: 81, Target: Redirect(15001)}}, pod, "tcp4", "203.0.113.5:81", "proxy from 10.42.0.2 to 203.0.113.5:81"},
		{"from outside to a pod", []Rule{{Chain: Prerouting, In: "eth0", Protocol: TCP, DestinationPort: 8080, Target: DNAT(netip.MustParseAddrPort("10.42.0.2:80"))}}, outside, "tcp4", "192.0.2.2:8080", "pod from 192.0.2.1 to "},
		{"from the node to a pod", []Rule{{Chain: Output, Destination: netip.PrefixFrom(uplink, 32), Protocol: TCP, DestinationPort: 8080, Target: DNAT(netip.MustParseAddrPort("10.42.0.2:80"))}}, node, "tcp4", "192.0.2.2:8080", "pod from "},
		{"from the node to its proxy", []Rule{{Chain: Output, Out: "eth0", Protocol: TCP, DestinationPort: 8080, Target: Redirect(15001)}}, node, "tcp4", "192.0.2.1:8080", "proxy from "},
	} {
		for _, backend := range Backends() {
			t.Run(backend.String()+"/"+test.name, func(t *testing.T) {
				if err := Supports(backend, test.rules); err != nil {
					t.Skipf("this kernel does not take the rules: %v", err)
				}
				c := newCluster(t)
				c.outside.serve(t, "outside", 80)
				c.outside.servePackets(t, "outside", 53)
				c.node.serve(t, "proxy", 15001)
				c.node.serve(t, "node", 80)
				c.pod.serve(t, "pod", 80)
				if got := test.from(c).ask(test.network, test.address); strings.Contains(got, test.want) {
					t.Errorf("without the rules the answer is: %s", got)
				}
				if err := c.node.do(func() error { return backend.Apply(test.rules) }); err != nil {
					t.Fatal(err)
				}
				if got := test.from(c).ask(test.network, test.address); !strings.Contains(got, test.want) {
					if *here && test.rules[0].Chain == Output && test.rules[0].Target.kind == dnat {
						t.Skipf("gVisor does not route such a packet again (gvisor#14626): %s", got)
					}
					t.Errorf("got %q, want %q in it", got, test.want)
				}
				// What the rules except, or do not match.
				if got, want := c.pod.ask("tcp4", "10.43.0.1:80"), "node from 10.42.0.2"; !strings.Contains(got, want) {
					t.Errorf("a service: got %q, want %q in it", got, want)
				}
				if err := c.node.do(backend.Remove); err != nil {
					t.Fatal(err)
				}
				if got := test.from(c).ask(test.network, test.address); strings.Contains(got, test.want) {
					t.Errorf("after Remove the answer is: %s", got)
				}
			})
		}
	}
}

// What one device brings and another one is to take is not passed on; what is for the node
// arrives.
func TestDrop(t *testing.T) {
	needRoot(t)
	rules := []Rule{{Chain: Forward, In: "cni0", Out: "eth0", Target: Drop()}}
	for _, backend := range Backends() {
		t.Run(backend.String(), func(t *testing.T) {
			if err := Supports(backend, rules); err != nil {
				t.Skipf("this kernel does not take the rules: %v", err)
			}
			c := newCluster(t)
			c.outside.servePackets(t, "outside", 53)
			c.node.servePackets(t, "node", 53)
			asks := func(when, address, want string) {
				t.Helper()
				if got := c.pod.ask("udp4", address); !strings.Contains(got, want) {
					t.Errorf("%s: got %q, want %q in it", when, got, want)
				}
			}
			asks("without the rules", "192.0.2.1:53", "outside from 10.42.0.2")
			if err := c.node.do(func() error { return backend.Apply(rules) }); err != nil {
				t.Fatal(err)
			}
			if got := c.pod.askWithin(300*time.Millisecond, "udp4", "192.0.2.1:53"); !strings.Contains(got, "i/o timeout") {
				t.Errorf("with the rules the outside answers: %s", got)
			}
			asks("to the node", "10.42.0.1:53", "node from 10.42.0.2")
			if err := c.node.do(backend.Remove); err != nil {
				t.Fatal(err)
			}
			asks("after Remove", "192.0.2.1:53", "outside from 10.42.0.2")
		})
	}
}

// What pods send to pods of other nodes keeps their address, except for TCP by a proxy;
// what they send to the world does not.
func TestOtherNodes(t *testing.T) {
	needRoot(t)
	others := netip.MustParsePrefix("192.0.2.0/24")
	for name, test := range map[string]struct {
		rules         []Rule
		others, world string // who answers TCP
	}{
		"masquerade": {MasqueradePods("cni0", pods, others), "outside from 10.42.0.2 to ", "outside from 192.0.2.2 to "},
		"proxy":      {ProxyPods("cni0", services, 15001, pods, others, &Uplink{"eth0", uplink}), "proxy from 10.42.0.2 to 192.0.2.1:80", "proxy from 10.42.0.2 to 203.0.113.5:80"},
	} {
		for _, backend := range Backends() {
			t.Run(backend.String()+"/"+name, func(t *testing.T) {
				if err := Supports(backend, test.rules); err != nil {
					t.Skipf("this kernel does not take the rules: %v", err)
				}
				c := newCluster(t)
				c.outside.serve(t, "outside", 80)
				c.outside.servePackets(t, "outside", 53)
				c.node.serve(t, "proxy", 15001)
				if err := c.node.do(func() error { return backend.Apply(test.rules) }); err != nil {
					t.Fatal(err)
				}
				for _, way := range []struct{ network, address, want string }{
					{"udp4", "192.0.2.1:53", "outside from 10.42.0.2"},
					{"tcp4", "192.0.2.1:80", test.others},
					{"tcp4", "203.0.113.5:80", test.world},
				} {
					if got := c.pod.ask(way.network, way.address); !strings.Contains(got, way.want) {
						t.Errorf("%s to %s: got %q, want %q in it", way.network, way.address, got, way.want)
					}
				}
				if err := c.node.do(backend.Remove); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func pod(c cluster) *namespace     { return c.pod }
func node(c cluster) *namespace    { return c.node }
func outside(c cluster) *namespace { return c.outside }
