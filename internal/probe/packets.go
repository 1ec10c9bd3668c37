package probe

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"k3s9p/internal/nat"
)

// The network of these probes: the node's end of a veth pair, the other end, and a pod.
// The kernel has no opinion of the networks for documentation (RFC 5737).
var (
	nodeEnd  = netip.MustParseAddr("192.0.2.1")
	farEnd   = netip.MustParseAddr("192.0.2.2")
	otherEnd = netip.MustParseAddr("192.0.2.3")
	pod      = netip.MustParseAddr("198.51.100.2")
	pods     = netip.PrefixFrom(pod, 24).Masked()
	farther  = netip.MustParseAddr("203.0.113.1")
	nodeLink = "k3s9p-a"
)

const (
	proxyPort = 15001
	anyPort   = 7
	// answerTime is how long a packet may take within one kernel, on a busy machine.
	// Both probes together have less than limit.
	answerTime = 4 * time.Second
)

// masqueradedPacket gives the kernel the rule for pods to leave by, sends a packet as a
// pod, and looks with which address it arrives.
func masqueradedPacket(backend nat.Backend) error {
	return follows(backend, nat.MasqueradePods("k3s9p-br", pods, pods), arrivesFromNode)
}

// proxiedPackets does the same for UDP with the rules that need a proxy, and connects
// from the far end, which then stands for a pod, to see whether the proxy gets that.
func proxiedPackets(backend nat.Backend) error {
	rules := nat.ProxyPods(nodeLink, pods, proxyPort, pods, pods, &nat.Uplink{Name: nodeLink, Address: nodeEnd})
	return follows(backend, rules, func(far within) error { return errors.Join(arrivesFromNode(far), arrivesAtProxy(far)) })
}

// follows reports whether the kernel takes rules and follows them. Where no packets can
// be sent between two network namespaces, to take them is enough.
func follows(backend nat.Backend, rules []nat.Rule, send func(within) error) error {
	if err := nat.Supports(backend, rules); err != nil { // it names the rule
		return err
	}
	err := betweenNetworks(func(far within) error { return errors.Join(backend.Apply(rules), send(far)) })
	if errors.Is(err, ErrUnclear) {
		return nil
	}
	return err
}

// within calls a function in another network namespace.
type within func(func() error) error

func arrivesFromNode(far within) error {
	var receiver *net.UDPConn
	err := far(func() (err error) {
		receiver, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(farEnd, anyPort)))
		return err
	})
	if err != nil {
		return unclearly("listen for packets", err)
	}
	defer receiver.Close()
	sender, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pod, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(farEnd, anyPort)))
	if err != nil {
		return unclearly("send as a pod", err)
	}
	defer sender.Close()
	if _, err := sender.Write([]byte("k3s9p")); err != nil {
		return fmt.Errorf("send a packet of a pod: %w", err)
	}
	if err := receiver.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return unclearly("wait for a packet", err)
	}
	_, from, err := receiver.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		return fmt.Errorf("the rules were taken, and a packet of a pod does not arrive: %w", err)
	}
	if from.Addr() != nodeEnd {
		return fmt.Errorf("the rules were taken, and a packet of a pod arrives with the address %s", from.Addr())
	}
	return nil
}

func arrivesAtProxy(far within) error {
	proxy, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(nodeEnd, proxyPort)))
	if err != nil {
		return unclearly("listen as a proxy", err)
	}
	defer proxy.Close()
	if err := proxy.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return unclearly("wait for a connection", err)
	}
	accepted := make(chan error, 1)
	go func() {
		conn, err := proxy.Accept()
		if err == nil {
			_, err = io.WriteString(conn, "k3s9p")
			err = errors.Join(err, conn.Close())
		}
		accepted <- err
	}()
	var conn net.Conn
	err = far(func() (err error) {
		conn, err = net.DialTimeout("tcp4", netip.AddrPortFrom(farther, anyPort).String(), answerTime)
		return err
	})
	if err != nil {
		return fmt.Errorf("the rules were taken, and a connection of a pod does not get to the proxy: %w", err)
	}
	defer conn.Close()
	if err := <-accepted; err != nil {
		return fmt.Errorf("the rules were taken, and the proxy got no connection: %w", err)
	}
	return nil
}

// betweenNetworks calls f in this network namespace, with a veth pair to a second one,
// and what calls a function there.
func betweenNetworks(f func(far within) error) error {
	runtime.LockOSThread() // never unlocked: this process ends with the probe
	here, err := netns.Get()
	if err != nil {
		return unclearly("find the network namespace", err)
	}
	there, far, err := otherNetwork(here)
	if err != nil {
		return unclearly("make a second network namespace", err)
	}
	if err := connect(there, far); err != nil {
		return unclearly("connect two network namespaces", err)
	}
	return f(far)
}

// otherNetwork makes another network namespace than the thread's, which is here.
func otherNetwork(here netns.NsHandle) (there netns.NsHandle, far within, err error) {
	if there, err = netns.New(); err != nil {
		return there, nil, err
	}
	far = func(f func() error) error {
		if err := netns.Set(there); err != nil {
			return err
		}
		return errors.Join(f(), netns.Set(here))
	}
	return there, far, netns.Set(here)
}

func connect(there netns.NsHandle, far within) error {
	link, peer, err := veth(nodeLink, "k3s9p-b")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(peer, int(there)); err != nil {
		return err
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := errors.Join(address(link, netip.PrefixFrom(nodeEnd, 24)), address(loopback, netip.PrefixFrom(pod, 32))); err != nil {
		return err
	}
	return far(func() error {
		peer, err := netlink.LinkByName("k3s9p-b")
		if err != nil {
			return err
		}
		if err := address(peer, netip.PrefixFrom(farEnd, 24)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: peer.Attrs().Index, Gw: net.IP(nodeEnd.AsSlice())})
	})
}

func address(link netlink.Link, prefix netip.Prefix) error {
	ip := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)}
	return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}), netlink.LinkSetUp(link))
}

func unclearly(what string, err error) error { return fmt.Errorf("%w: %s: %w", ErrUnclear, what, err) }
