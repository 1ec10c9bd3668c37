package svcproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Policy says which destinations Egress does not dial. Always refused is a
// destination that is the listener itself.
type Policy struct {
	// Allow is dialed in any case.
	Allow []netip.Prefix
	// Refuse is refused otherwise, and so is what means the node or its link when
	// the node dials it: loopback, link-local (the metadata service of a cloud),
	// multicast, and 0.0.0.0/8.
	Refuse []netip.Prefix
}

// ListenEgress serves connections that a rule has redirected (iptables-extensions(8),
// REDIRECT) to the address, IPv4; a port 0 is replaced by a free one. It dials, for
// each, where that was going.
func ListenEgress(address netip.AddrPort, policy Policy, options Options) (*TCP, error) {
	if !address.Addr().Is4() { // of IPv6, SO_ORIGINAL_DST is another option
		return nil, fmt.Errorf("proxy TCP: listen at %v for redirected connections: not an address of IPv4", address)
	}
	return ListenTCP(address, policy.destinations(originalDestination, isOwnAddress), options)
}

func (p Policy) destinations(original func(Flow) (netip.AddrPort, error), own func(netip.Addr) (bool, error)) Destinations {
	return func(flow Flow) ([]netip.AddrPort, error) {
		to, err := original(flow)
		if err != nil {
			return nil, fmt.Errorf("ask where a connection of %v was going: %w", flow.Client, err)
		}
		// Listening at 0.0.0.0, the proxy is at every address of the node.
		if to.Port() == flow.Local.Port() {
			if own, err := own(to.Addr()); err != nil || own {
				return nil, errors.Join(fmt.Errorf("%v, where %v was going, may be the proxy itself", to, flow.Client), err)
			}
		}
		if err := p.check(to.Addr()); err != nil {
			return nil, fmt.Errorf("%v was going to %v: %w", flow.Client, to, err)
		}
		return []netip.AddrPort{to}, nil
	}
}

// thisNetwork may appear as a source only (RFC 1122, 3.2.1.3); Linux takes 0.0.0.0
// as a destination to be loopback.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

func (p Policy) check(to netip.Addr) error {
	within := func(prefix netip.Prefix) bool { return prefix.Contains(to) }
	switch {
	case slices.ContainsFunc(p.Allow, within):
		return nil
	case to.IsLoopback():
		return errors.New("a loopback address would be the node's")
	case to.IsLinkLocalUnicast():
		return errors.New("a link-local address would be on the node's link")
	case to.IsMulticast(), thisNetwork.Contains(to):
		return errors.New("not an address to connect to")
	}
	if i := slices.IndexFunc(p.Refuse, within); i >= 0 {
		return fmt.Errorf("%v is refused", p.Refuse[i])
	}
	return nil
}

// isOwnAddress reports whether an address is one of the node's.
func isOwnAddress(address netip.Addr) (bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("list the addresses of the node: %w", err)
	}
	return address.IsLoopback() || isAmong(all, address), nil
}

func isAmong(addresses []net.Addr, address netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(a net.Addr) bool {
		ipNet, ok := a.(*net.IPNet)
		return ok && ipNet.IP.Equal(address.AsSlice())
	})
}

// originalDestinationOption is SO_ORIGINAL_DST (linux/netfilter_ipv4.h).
const originalDestinationOption = 80

// originalDestination is where a TCP connection was going before a rule redirected
// it. Linux answers with the local address if none has, gVisor with an error
// (pkg/sentry/socket/netstack/netstack.go).
func originalDestination(flow Flow) (netip.AddrPort, error) {
	conn, ok := flow.conn.(syscall.Conn)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%T is not a socket", flow.conn)
	}
	// The kernel writes a struct sockaddr_in of 16 bytes. Of the structures that
	// x/sys reads with getsockopt, this one begins with 16 bytes and nothing else.
	answer, err := control(conn, func(fd int) (*unix.IPv6Mreq, error) {
		return unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, originalDestinationOption)
	})
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("getsockopt SO_ORIGINAL_DST: %w", err)
	}
	return parseSockaddr(answer.Multiaddr), nil
}

// parseSockaddr reads a struct sockaddr_in (ip(7)): after two bytes with the
// address family come port and address in network byte order.
func parseSockaddr(b [16]byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
}
