package svcproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace: that of a thread, which ends with the test.
type namespace struct{ calls chan func() }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	n := &namespace{calls: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		made <- unix.Unshare(unix.CLONE_NEWNET)
		for call := range n.calls {
			call()
		}
	}()
	err := <-made
	t.Cleanup(func() { close(n.calls) })
	if errors.Is(err, unix.EPERM) {
		t.Skip("only root can make network namespaces")
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// do calls f in the namespace: sockets stay in the one that they were made in,
// programs get that of the thread.
func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	result := make(chan error)
	n.calls <- func() { result <- f() }
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// Dial is a Dialer that dials from the namespace.
func (n *namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	done := make(chan struct{})
	n.calls <- func() {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		close(done)
	}
	<-done
	return conn, err
}

func (n *namespace) run(t testing.TB, program string, args ...string) {
	t.Helper()
	n.do(t, func() error {
		if output, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(output))
		}
		return nil
	})
}

// The addresses of router, below.
var (
	gateway   = netip.MustParseAddr("10.42.0.1") // of the router in the pod's network
	pod       = netip.MustParseAddr("10.42.0.2")
	uplink    = netip.MustParseAddr("192.0.2.2") // of the router in the outside
	outside   = netip.MustParseAddr("192.0.2.1")
	elsewhere = netip.MustParseAddr("198.51.100.1") // in the outside too, and no neighbour
)

// network is a pod, a router that redirects the pod's TCP to an egress proxy but
// does not forward, and an outside.
type network struct {
	pod, router, outside *namespace
	egress               *TCP
}

func newNetwork(t testing.TB, policy Policy, options Options) *network {
	t.Helper()
	n := &network{pod: newNamespace(t), router: newNamespace(t), outside: newNamespace(t)}
	connect(t, n.pod, n.router, "cni0", pod, gateway)
	connect(t, n.outside, n.router, "uplink", outside, uplink)
	n.pod.do(t, func() error { return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}) })
	n.router.do(t, func() error { return netlink.RouteAdd(&netlink.Route{Gw: outside.AsSlice()}) })
	n.outside.do(t, func() error { return addAddress("lo", elsewhere, 32) })
	options.Dial = n.router.Dial
	n.router.do(t, func() (err error) {
		n.egress, err = ListenEgress(netip.AddrPortFrom(gateway, 0), policy, options)
		return err
	})
	t.Cleanup(func() { closeNow(t, n.egress) })
	redirect(t, n.router, n.egress.Addr().Port())
	return n
}

// connect makes a veth pair between two namespaces: eth0 of the first is the
// device of the second.
func connect(t testing.TB, a, b *namespace, device string, ofA, ofB netip.Addr) {
	t.Helper()
	var peer int
	b.do(t, func() (err error) {
		peer, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	defer unix.Close(peer)
	a.do(t, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "eth0"
		return errors.Join(
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: device, PeerNamespace: netlink.NsFd(peer)}),
			addAddress("eth0", ofA, 24), addAddress("lo", netip.Addr{}, 0))
	})
	b.do(t, func() error { return errors.Join(addAddress(device, ofB, 24), addAddress("lo", netip.Addr{}, 0)) })
}

// addAddress sets a device up, with an address if there is one.
func addAddress(device string, address netip.Addr, bits int) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if address.IsValid() {
		ipNet := &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet}); err != nil {
			return fmt.Errorf("add %v to %s: %w", address, device, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// redirect makes the rule that a node has, with what there is.
func redirect(t testing.TB, router *namespace, port uint16) {
	t.Helper()
	if _, err := os.Stat("/proc/net/ip_tables_names"); err == nil {
		for _, program := range []string{"iptables-legacy", "iptables"} {
			if _, err := exec.LookPath(program); err == nil {
				router.run(t, program, strings.Fields(fmt.Sprintf("-t nat -A PREROUTING -i cni0 ! -d 10.43.0.0/16 -p tcp -j REDIRECT --to-ports %d", port))...)
				return
			}
		}
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("a rule needs iptables-legacy and a kernel with ip_tables, or nft")
	}
	router.run(t, "nft", fmt.Sprintf(`table ip nat { chain prerouting { type nat hook prerouting priority dstnat; iifname "cni0" ip daddr != 10.43.0.0/16 meta l4proto tcp redirect to :%d; }; }`, port))
}

func (n *network) listenOutside(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	var listener net.Listener
	n.outside.do(t, func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(elsewhere, 0).String())
		return err
	})
	return serveOn(t, listener, serve)
}

func (n *network) dialFromPod(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := n.pod.Dial(ctx, "tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	return prepare(t, conn)
}

func TestRedirectedPodTransfersBothWays(t *testing.T) {
	checkNothingLeft(t)
	n := newNetwork(t, Policy{}, Options{})
	from := make(chan netip.Addr, 1)
	serve := serveTransfer(t)
	server := n.listenOutside(t, func(conn *net.TCPConn) {
		from <- addrPort(conn.RemoteAddr()).Addr()
		serve(conn)
	})
	checkTransfer(t, n.dialFromPod(t, server))
	if got := <-from; got != uplink {
		t.Errorf("the server saw %v, not the node's address %v", got, uplink)
	}
	if got := n.egress.Counters(); got.Total != 1 || got.ToClient != transfer+90 {
		t.Errorf("the proxy did not do it: %+v", got)
	}
}

func TestRedirectedPodSeesRefusal(t *testing.T) {
	checkNothingLeft(t)
	n := newNetwork(t, Policy{}, Options{})
	checkReset(t, n.pod.Dial, netip.AddrPortFrom(elsewhere, 1))
	if got := n.egress.Counters().Failed; got != 1 {
		t.Errorf("%d connections have failed, not 1", got)
	}
}

// The pod asks for what would be another's: the proxy itself, by the rule and
// without it; the node's loopback; a refused prefix.
func TestRedirectedPodIsRefused(t *testing.T) {
	checkNothingLeft(t)
	n := newNetwork(t, Policy{Refuse: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, Options{})
	for i, address := range []netip.AddrPort{
		n.egress.Addr(),
		netip.MustParseAddrPort("169.254.169.254:80"),
		netip.MustParseAddrPort("203.0.113.1:80"),
	} {
		checkReset(t, n.pod.Dial, address)
		if got := n.egress.Counters(); got.Refused != uint64(i+1) || got.Failed != 0 {
			t.Errorf("%v: counters are %+v, not %d refused", address, got, i+1)
		}
	}
}
