package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"

	"k3s9p/internal/rawudp"
)

// RawUDP sends a datagram by a bridge to an address that is none of its network, looks
// whether a raw socket gets it, and answers by that. It takes network namespaces of its own.
func RawUDP(ctx context.Context) error { return inNetwork(ctx, "raw-udp") }

func rawUDP() error {
	runtime.LockOSThread() // never unlocked: this process ends with the probe
	bridge, far, err := bridgeWithPod()
	if err != nil {
		return err
	}
	raw, err := rawudp.Listen(bridge.Attrs().Name)
	if err != nil {
		return err
	}
	defer raw.Close()
	var sender *net.UDPConn
	err = far(func() error {
		link, err := netlink.LinkByName("k3s9p-b")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IP(nodeEnd.AsSlice())}); err != nil {
			return err
		}
		sender, err = listenAt(farEnd)
		return err
	})
	if err != nil {
		return unclearly("send as a pod", err)
	}
	defer sender.Close()
	outside := netip.AddrPortFrom(farther, anyPort)
	if _, err := sender.WriteToUDPAddrPort([]byte(before), outside); err != nil {
		return unclearly("send as a pod", err)
	}
	if err := raw.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
		return unclearly("wait for a datagram", err)
	}
	datagram, from, to, err := raw.Read()
	if err != nil {
		return fmt.Errorf("a raw socket does not get what a pod sends to the outside: %w", err)
	}
	if !bytes.Equal(datagram, []byte(before)) || from.Addr() != farEnd || to != outside {
		return fmt.Errorf("a raw socket gets %q from %v to %v", datagram, from, to)
	}
	if err := raw.Write([]byte(after), to, from); err != nil {
		return fmt.Errorf("answer a pod from the address of somebody else: %w", err)
	}
	if got, err := read(sender, answerTime); err != nil || got != after {
		return errors.Join(fmt.Errorf("a pod gets no answer that a raw socket sends: %q", got), err)
	}
	return nil
}
