// Package rawudp reads what goes through a machine by UDP, and answers it: it is for a
// kernel that does not forward and gives a raw socket each packet before it looks where
// that is going, as gVisor does (pkg/tcpip/network/ipv4/ipv4.go, handleValidatedPacket).
//
// Do not use it on Linux, where a raw socket gets what is for the machine itself (raw(7)).
package rawudp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// MaxSize is the largest datagram, in bytes, that goes both ways in gVisor: its raw sockets
// send no packet of more than 65,507 bytes with its headers, and receive no fragments.
const MaxSize = 65507 - header.IPv4MinimumSize - header.UDPMinimumSize

// Conn is a socket for all datagrams of IPv4 that arrive by one device. One goroutine at
// a time may read, any may write.
type Conn struct {
	conn   *net.IPConn
	buffer [1 << 16]byte
}

// bufferSize is how much may wait to be read, in bytes: in gVisor a raw socket has 32 KiB
// unless it asks for more.
const bufferSize = 1 << 20

// Listen makes a socket, which takes CAP_NET_RAW.
func Listen(device string) (*Conn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failure error
		err := raw.Control(func(fd uintptr) {
			failure = errors.Join(
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device),
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_HDRINCL, 1))
		})
		return errors.Join(err, failure)
	}}
	conn, err := config.ListenPacket(context.Background(), "ip4:udp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("receive the datagrams that arrive by %s: %w", device, err)
	}
	ip := conn.(*net.IPConn)
	_ = ip.SetReadBuffer(bufferSize) // with less, datagrams are lost sooner
	return &Conn{conn: ip}, nil
}

// Read returns the next datagram, which is valid until the next Read, from whom it is and
// where it was going. What is no whole datagram is left out.
func (c *Conn) Read() (datagram []byte, from, to netip.AddrPort, err error) {
	for {
		n, _, _, _, err := c.conn.ReadMsgIP(c.buffer[:], nil)
		if err != nil {
			return nil, from, to, err
		}
		if datagram, from, to, ok := parse(c.buffer[:n]); ok {
			return datagram, from, to, nil
		}
	}
}

// Write sends a datagram, from an address that does not have to be this machine's.
func (c *Conn) Write(datagram []byte, from, to netip.AddrPort) error {
	_, err := c.conn.WriteToIP(packet(datagram, from, to), &net.IPAddr{IP: to.Addr().AsSlice()})
	return err
}

// SetReadDeadline is that of [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// Close ends a Read with [net.ErrClosed].
func (c *Conn) Close() error { return c.conn.Close() }

// parse does not look at checksums: between devices of one kernel there may be none.
func parse(packet []byte) (datagram []byte, from, to netip.AddrPort, ok bool) {
	ip := header.IPv4(packet)
	if !ip.IsValid(len(packet)) || ip.TransportProtocol() != header.UDPProtocolNumber || ip.More() || ip.FragmentOffset() != 0 {
		return nil, from, to, false
	}
	udp := header.UDP(ip.Payload())
	if len(udp) < header.UDPMinimumSize || int(udp.Length()) < header.UDPMinimumSize || int(udp.Length()) > len(udp) {
		return nil, from, to, false
	}
	from = netip.AddrPortFrom(netip.AddrFrom4(ip.SourceAddress().As4()), udp.SourcePort())
	to = netip.AddrPortFrom(netip.AddrFrom4(ip.DestinationAddress().As4()), udp.DestinationPort())
	return udp[header.UDPMinimumSize:udp.Length()], from, to, true
}

// packet leaves the identification and the checksum of IP to the kernel (raw(7)).
func packet(datagram []byte, from, to netip.AddrPort) []byte {
	p := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize+len(datagram))
	source, destination := tcpip.AddrFrom4(from.Addr().As4()), tcpip.AddrFrom4(to.Addr().As4())
	header.IPv4(p).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(p)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: source, DstAddr: destination,
	})
	udp := header.UDP(p[header.IPv4MinimumSize:])
	udp.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: uint16(len(udp))})
	copy(udp.Payload(), datagram)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, source, destination, uint16(len(udp)))
	sum = ^udp.CalculateChecksum(checksum.Checksum(datagram, sum))
	if sum == 0 { // would say that there is none (RFC 768)
		sum = 0xffff
	}
	udp.SetChecksum(sum)
	return p
}
