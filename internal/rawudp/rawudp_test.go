package rawudp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	pod    = netip.MustParseAddrPort("10.42.0.2:40000")
	server = netip.MustParseAddrPort("198.51.100.1:53")
)

func TestAPacketIsReadAsItWasWritten(t *testing.T) {
	for _, size := range []int{0, 1, 1472, MaxSize} {
		want := bytes.Repeat([]byte("x"), size)
		datagram, from, to, ok := parse(packet(want, server, pod))
		if !ok || !bytes.Equal(datagram, want) || from != server || to != pod {
			t.Errorf("%d bytes: %d bytes from %v to %v, %v", size, len(datagram), from, to, ok)
		}
	}
}

// The checksum is that of RFC 768, and never 0.
func TestChecksum(t *testing.T) {
	for i := range 1 << 16 { // with one of them the sum is 0
		p := packet(binary.BigEndian.AppendUint16(nil, uint16(i)), server, pod)
		ip := header.IPv4(p)
		udp := header.UDP(ip.Payload())
		if udp.Checksum() == 0 || !udp.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), checksum.Checksum(udp.Payload(), 0)) {
			t.Fatalf("%x has the checksum %#x", p, udp.Checksum())
		}
	}
}

func TestNoDatagram(t *testing.T) {
	with := func(change func(header.IPv4)) []byte {
		p := packet([]byte("datagram"), server, pod)
		change(p)
		return p
	}
	for name, p := range map[string][]byte{
		"nothing":          nil,
		"half a header":    with(func(header.IPv4) {})[:10],
		"cut off":          with(func(header.IPv4) {})[:30],
		"IPv6":             with(func(p header.IPv4) { p[0] = 6<<4 | p[0]&0xf }),
		"TCP":              with(func(p header.IPv4) { p[9] = uint8(header.TCPProtocolNumber) }),
		"first fragment":   with(func(p header.IPv4) { p.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0) }),
		"another fragment": with(func(p header.IPv4) { p.SetFlagsFragmentOffset(0, 8) }),
		"half of UDP's":    with(func(p header.IPv4) { p.SetTotalLength(24) }),
		"too short":        with(func(p header.IPv4) { header.UDP(p.Payload()).SetLength(7) }),
		"too long":         with(func(p header.IPv4) { header.UDP(p.Payload()).SetLength(17) }),
	} {
		if datagram, from, to, ok := parse(p); ok {
			t.Errorf("%s: %q from %v to %v", name, datagram, from, to)
		}
	}
}

// On Linux a raw socket gets what is for the machine itself, and so are the addresses of a
// local route.
func TestConn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = exchange(t)
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func exchange(t *testing.T) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	_, everywhere, _ := net.ParseCIDR("198.51.100.0/24")
	err = errors.Join(netlink.LinkSetUp(lo), netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: everywhere, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}))
	if err != nil {
		return err
	}
	raw, err := Listen("lo")
	if err != nil {
		return err
	}
	defer raw.Close()
	client, err := net.ListenPacket("udp4", "127.0.0.1:0") // not connected: it is told that nobody listens
	if err != nil {
		return err
	}
	defer client.Close()
	deadline := time.Now().Add(10 * time.Second)
	if err := errors.Join(raw.SetReadDeadline(deadline), client.SetReadDeadline(deadline)); err != nil {
		return err
	}
	answer := make([]byte, 1<<16)
	for _, size := range []int{3, 3000, 60000} {
		question := bytes.Repeat([]byte("q"), size)
		if _, err := client.WriteTo(question, net.UDPAddrFromAddrPort(server)); err != nil {
			return err
		}
		datagram, from, to, err := raw.Read()
		if err != nil {
			return err
		}
		if !bytes.Equal(datagram, question) || from.String() != client.LocalAddr().String() || to != server {
			t.Errorf("%d bytes from %v to %v, not %d from %v", len(datagram), from, to, size, client.LocalAddr())
		}
		if err := raw.Write(slices.Concat([]byte("answer to "), datagram), to, from); err != nil {
			return err
		}
		n, by, err := client.ReadFrom(answer)
		if err != nil {
			return err
		}
		if string(answer[:n]) != "answer to "+string(question) || by.String() != server.String() {
			t.Errorf("%d bytes come back from %v, to %d", n, by, size)
		}
		// What was sent as an answer arrives by lo as well.
		if datagram, from, _, err := raw.Read(); err != nil || from != server || len(datagram) != n {
			t.Errorf("then there are %d bytes from %v, %v", len(datagram), from, err)
		}
	}
	return nil
}
