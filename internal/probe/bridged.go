package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"k3s9p/internal/nat"
)

// Bridged sends a frame from one port of a bridge to another, in network namespaces of
// its own, and looks whether the bridge's own network stack takes it too. gVisor's does,
// and where it forwards, each packet between two pods arrives twice.
func Bridged(ctx context.Context) error { return inNetwork(ctx, "bridged") }

// DropBridged gives the kernel the rule against that. Whether it is followed is not tried:
// gVisor forwards in its first network namespace only.
func DropBridged(ctx context.Context, backend nat.Backend) error {
	return inNetwork(ctx, "drop-bridged", backend.String())
}

func dropBridged(backend nat.Backend) error {
	return nat.Supports(backend, nat.Bridged("k3s9p-br"))
}

// What the probe sends: until the sender knows the receiver's link-layer address; by that
// address; and to the bridge itself, after that.
const before, between, after = "before", "between", "after"

func bridged() error {
	runtime.LockOSThread() // never unlocked: this process ends with the probe
	bridge, sender, err := bridgeWithPod()
	if err != nil {
		return err
	}
	receiver, err := attach(bridge, "k3s9p-c", "k3s9p-d", otherEnd)
	if err != nil {
		return unclearly("connect a bridge with a network namespace", err)
	}
	own, err := listenAt(netip.IPv4Unspecified())
	if err != nil {
		return unclearly("listen for packets", err)
	}
	defer own.Close()
	var there, toOther, toBridge *net.UDPConn
	err = receiver(func() (err error) { there, err = listenAt(otherEnd); return err })
	if err != nil {
		return unclearly("listen for packets", err)
	}
	defer there.Close()
	err = sender(func() (err error) {
		if toOther, err = dialTo(otherEnd); err == nil {
			toBridge, err = dialTo(nodeEnd)
		}
		return err
	})
	if err != nil {
		return unclearly("send packets", err)
	}
	defer toOther.Close()
	defer toBridge.Close()
	for deadline := time.Now().Add(answerTime); ; {
		if _, err := toOther.Write([]byte(before)); err != nil {
			return unclearly("send a packet by a bridge", err)
		}
		if err := await(there, 100*time.Millisecond, before); err == nil {
			break
		} else if time.Now().After(deadline) {
			return unclearly("send a packet by a bridge", err)
		}
	}
	// From now on the packet is one for the bridge's own stack too; the frame is not.
	if err := address(bridge, netip.PrefixFrom(otherEnd, 32)); err != nil {
		return unclearly("give a bridge a second address", err)
	}
	_, err = toOther.Write([]byte(between))
	if err == nil {
		_, err = toBridge.Write([]byte(after))
	}
	if err == nil {
		err = await(there, answerTime, between)
	}
	if err != nil {
		return unclearly("send a packet by a bridge", err)
	}
	got, err := read(own, answerTime)
	switch {
	case err != nil:
		return unclearly("send a packet to a bridge", err)
	case got == between:
		return errors.New("a frame from one port of a bridge to another is taken by the bridge's own network stack too")
	}
	return nil
}

// bridgeWithPod makes a bridge with the address nodeEnd, and at a port of it a network
// namespace with farEnd.
func bridgeWithPod() (netlink.Link, within, error) {
	bridge, err := addBridge()
	if err != nil {
		return nil, nil, err
	}
	if err := address(bridge, netip.PrefixFrom(nodeEnd, 24)); err != nil {
		return nil, nil, unclearly("give a bridge an address", err)
	}
	far, err := attach(bridge, "k3s9p-a", "k3s9p-b", farEnd)
	if err != nil {
		return nil, nil, unclearly("connect a bridge with a network namespace", err)
	}
	return bridge, far, nil
}

// attach makes a network namespace with an address, connected by a port of a bridge.
func attach(bridge netlink.Link, name, peerName string, end netip.Addr) (within, error) {
	here, err := netns.Get()
	if err != nil {
		return nil, err
	}
	there, far, err := otherNetwork(here)
	if err != nil {
		return nil, err
	}
	port, peer, err := veth(name, peerName)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(port), netlink.LinkSetNsFd(peer, int(there))); err != nil {
		return nil, err
	}
	return far, far(func() error {
		peer, err := netlink.LinkByName(peerName)
		if err != nil {
			return err
		}
		return address(peer, netip.PrefixFrom(end, 24))
	})
}

func listenAt(address netip.Addr) (*net.UDPConn, error) {
	return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, anyPort)))
}

func dialTo(address netip.Addr) (*net.UDPConn, error) {
	return net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, anyPort)))
}

// await reads packets until there is the wanted one.
func await(conn *net.UDPConn, within time.Duration, want string) error {
	for deadline := time.Now().Add(within); ; {
		got, err := read(conn, time.Until(deadline))
		if err != nil {
			return fmt.Errorf("wait for %q: %w", want, err)
		}
		if got == want {
			return nil
		}
	}
}

func read(conn *net.UDPConn, within time.Duration) (string, error) {
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	buffer := make([]byte, 16)
	n, err := conn.Read(buffer)
	return string(buffer[:n]), err
}
