package svcproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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

// thisNamespace is the one that the program was started in.
func thisNamespace(t testing.TB) *namespace {
	n := &namespace{calls: make(chan func())}
	go func() {
		for call := range n.calls {
			call()
		}
	}()
	t.Cleanup(func() { close(n.calls) })
	return n
}

// do calls f in the namespace: sockets stay in the one that they were made in,
// programs get that of the thread.
func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.call(f); err != nil {
		t.Fatal(err)
	}
}

func (n *namespace) call(f func() error) error {
	result := make(chan error)
	n.calls <- func() { result <- f() }
	return <-result
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

func (n *namespace) run(t testing.TB, command []string) {
	t.Helper()
	if err := n.try(command); err != nil {
		t.Fatal(err)
	}
}

// try runs a program in the namespace.
func (n *namespace) try(command []string) error {
	return n.call(func() error {
		output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(output))
		}
		return nil
	})
}

// The addresses of router, below.
var (
	gateway    = netip.MustParseAddr("10.42.0.1") // of the router in the pod's network
	podAddress = netip.MustParseAddr("10.42.0.2")
	uplink     = netip.MustParseAddr("192.0.2.2") // of the router in the outside
	outside    = netip.MustParseAddr("192.0.2.1")
	elsewhere  = netip.MustParseAddr("198.51.100.1") // in the outside too, and no neighbour
)

// network is a pod, a router that redirects the pod's TCP to an egress proxy but
// does not forward, and an outside.
type network struct {
	pod, router, outside *namespace
	egress               *TCP
}

func newNetwork(t testing.TB, listen netip.Addr, policy Policy, options Options) *network {
	t.Helper()
	n := &network{pod: newNamespace(t), router: newNamespace(t), outside: newNamespace(t)}
	connect(t, n.pod, n.router, "cni0", podAddress, gateway, 0)
	connect(t, n.outside, n.router, "uplink", outside, uplink, 0)
	n.pod.do(t, func() error { return addDefaultRoute("eth0", gateway) })
	n.router.do(t, func() error { return addDefaultRoute("uplink", outside) })
	n.outside.do(t, func() error { return addAddress("eth0", elsewhere, 32) })
	options.Dial = n.router.Dial
	n.router.do(t, func() (err error) {
		n.egress, err = ListenEgress(netip.AddrPortFrom(listen, 0), policy, options)
		return err
	})
	t.Cleanup(func() { closeNow(t, n.egress) })
	redirect(t, n.router, n.egress.Addr().Port())
	return n
}

// connect makes a veth pair between two namespaces: eth0 of the first is the
// device of the second. An MTU of 0 is the kernel's choice.
func connect(t testing.TB, a, b *namespace, device string, ofA, ofB netip.Addr, mtu int) {
	t.Helper()
	var peer int
	b.do(t, func() (err error) {
		peer, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	defer unix.Close(peer)
	a.do(t, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.MTU = "eth0", mtu
		return errors.Join(
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: device, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(peer)}),
			addAddress("eth0", ofA, 24), addAddress("lo", netip.Addr{}, 0))
	})
	b.do(t, func() error { return errors.Join(addAddress(device, ofB, 24), addAddress("lo", netip.Addr{}, 0)) })
}

// makeBridge connects a pod to a node as CNI's bridge plugin does, with the MTU
// that gVisor needs: less, and it drops what it forwards between pods (gvisor#14011).
func makeBridge(t testing.TB, node, pod *namespace) {
	t.Helper()
	const mtu = 65535
	connect(t, pod, node, "veth0", podAddress, netip.Addr{}, mtu)
	node.do(t, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.MTU = "cni0", mtu
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		bridge, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		port, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(port, bridge), addAddress("cni0", gateway, 24))
	})
	pod.do(t, func() error { return addDefaultRoute("eth0", gateway) })
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

// addDefaultRoute names the device, without which gVisor takes no route.
func addDefaultRoute(device string, gateway netip.Addr) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add a default route by %v: %w", gateway, err)
	}
	return nil
}

// redirect makes the rule that a node has, with the first program that can at
// least list the rules.
func redirect(t testing.TB, router *namespace, port uint16) {
	t.Helper()
	iptables := fmt.Sprintf("-t nat -A PREROUTING -i cni0 ! -d 10.43.0.0/16 -p tcp -j REDIRECT --to-ports %d", port)
	nft := fmt.Sprintf(`add table ip nat; add chain ip nat prerouting { type nat hook prerouting priority dstnat; };
		add rule ip nat prerouting iifname "cni0" ip daddr != 10.43.0.0/16 meta l4proto tcp redirect to :%d`, port)
	var failures error
	for _, program := range []struct{ list, add []string }{
		{strings.Fields("iptables-legacy -t nat -S"), append([]string{"iptables-legacy"}, strings.Fields(iptables)...)},
		{strings.Fields("iptables -t nat -S"), append([]string{"iptables"}, strings.Fields(iptables)...)},
		{strings.Fields("nft list ruleset"), []string{"nft", nft}},
	} {
		err := router.try(program.list)
		if err == nil {
			router.run(t, program.add)
			return
		}
		failures = errors.Join(failures, err)
	}
	t.Skipf("a rule needs iptables or nft, and the kernel's support: %v", failures)
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

func (n *namespace) dial(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	return prepare(t, conn)
}

func TestRedirectedPodTransfersBothWays(t *testing.T) {
	for _, listen := range []netip.Addr{gateway, netip.IPv4Unspecified()} {
		t.Run(listen.String(), func(t *testing.T) {
			checkNothingLeft(t)
			n := newNetwork(t, listen, Policy{}, Options{})
			from := make(chan netip.Addr, 1)
			serve := serveTransfer(t)
			server := n.listenOutside(t, func(conn *net.TCPConn) {
				from <- addrPort(conn.RemoteAddr()).Addr()
				serve(conn)
			})
			checkTransfer(t, n.pod.dial(t, server))
			select {
			case got := <-from:
				if got != uplink {
					t.Errorf("the server saw %v, not the node's address %v", got, uplink)
				}
			default:
				t.Error("the server saw no connection")
			}
			if got := n.egress.Counters(); got.Total != 1 || got.ToClient != transfer+90 {
				t.Errorf("the proxy did not do it: %+v", got)
			}
		})
	}
}

// A client may ask for MPTCP, and gets TCP.
func TestRedirectedPodWithMultipathTCP(t *testing.T) {
	checkNothingLeft(t)
	n := newNetwork(t, gateway, Policy{}, Options{})
	server := n.listenOutside(t, echo)
	var dialer net.Dialer
	dialer.SetMultipathTCP(true)
	var conn net.Conn
	n.pod.do(t, func() (err error) {
		conn, err = dialer.Dial("tcp4", server.String())
		return err
	})
	checkEcho(t, prepare(t, conn))
}

func TestRedirectedPodSeesRefusal(t *testing.T) {
	checkNothingLeft(t)
	n := newNetwork(t, gateway, Policy{}, Options{})
	checkReset(t, n.pod.Dial, netip.AddrPortFrom(elsewhere, 1))
	if got := n.egress.Counters().Failed; got != 1 {
		t.Errorf("%d connections have failed, not 1", got)
	}
}

// The pod asks for what would be another's: the proxy itself, by the rule and
// without it; the node's loopback; a refused prefix.
func TestRedirectedPodIsRefused(t *testing.T) {
	checkNothingLeft(t)
	n := newNetwork(t, gateway, Policy{Refuse: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, Options{})
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

func TestIsOwnAddress(t *testing.T) {
	n := newNamespace(t)
	n.do(t, func() error { return addAddress("lo", elsewhere, 32) })
	for address, want := range map[netip.Addr]bool{
		elsewhere:                           true,
		elsewhere.Next():                    false,
		netip.MustParseAddr("127.0.0.1"):    true,
		netip.MustParseAddr("127.8.8.8"):    true,
		netip.MustParseAddr("192.0.2.1"):    false,
		netip.MustParseAddr("198.51.100.9"): false,
	} {
		n.do(t, func() error {
			if got, err := isOwnAddress(address); got != want || err != nil {
				return fmt.Errorf("%v: %v, %w", address, got, err)
			}
			return nil
		})
	}
}
