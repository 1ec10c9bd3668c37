// Package gateway is the uplink of a network namespace that has none: a tun device
// with the default route, and behind it a network stack in this process, which takes
// each TCP connection and each UDP flow and dials where it was going.
//
// Other protocols are dropped: nobody outside would send an ICMP echo for it.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"k3s9p/internal/probe"
	"k3s9p/internal/svcproxy"
)

// Device is the name of the tun device.
const Device = "tun0"

// The link between the namespace and the gateway: the end of a range that is for tests
// between two networks (RFC 2544) and that hardly anybody has a route to.
var (
	Network = netip.MustParsePrefix("198.19.255.252/30")
	Address = netip.MustParseAddr("198.19.255.253") // of the gateway
	inside  = netip.MustParseAddr("198.19.255.254")
)

// jumbo is the MTU that the device gets where the kernel allows it: each packet costs
// a system call.
const jumbo = 65520

// Options are those of a gateway.
type Options struct {
	// Dial connects to where a flow was going; network is tcp or udp.
	Dial svcproxy.Dialer
	// Resolver, if valid, is who the gateway's own port 53 belongs to.
	Resolver netip.AddrPort
	Log      *slog.Logger
	// MaxUDPFlows is how many are served at a time; 0 means 10240. What more of them send is
	// lost.
	MaxUDPFlows int
}

// Gateway is an uplink. It ends with its process.
type Gateway struct {
	options Options
	stack   *stack.Stack
	flows   chan struct{} // of UDP: as many as there are
}

// Open makes the device, with address and default route, in the network namespace of
// this process, and serves it.
func Open(o Options) error {
	fd, mtu, err := device()
	if err != nil {
		return err
	}
	g := &Gateway{options: o, flows: make(chan struct{}, cmp.Or(o.MaxUDPFlows, 10240)), stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})}
	if err := g.serve(fd, mtu); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return nil
}

// device makes the device and returns its file and its MTU, in bytes.
func device() (fd int, mtu uint32, err error) {
	if fd, err = probe.OpenTun(Device); err != nil {
		return 0, 0, err
	}
	if mtu, err = configure(); err != nil {
		return 0, 0, errors.Join(err, unix.Close(fd))
	}
	return fd, mtu, nil
}

// configure gives the device its address and the default route, and returns its MTU.
func configure() (uint32, error) {
	link, err := netlink.LinkByName(Device)
	if err != nil {
		return 0, fmt.Errorf("find the device %s: %w", Device, err)
	}
	_ = netlink.LinkSetMTU(link, jumbo) // an older gVisor keeps its own
	own := &net.IPNet{IP: inside.AsSlice(), Mask: net.CIDRMask(Network.Bits(), 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: own}); err != nil {
		return 0, fmt.Errorf("add %s to %s: %w", own, Device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("set %s up: %w", Device, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: Address.AsSlice()}); err != nil {
		return 0, fmt.Errorf("add the default route by %s: %w", Device, err)
	}
	if link, err = netlink.LinkByName(Device); err != nil {
		return 0, fmt.Errorf("find the device %s: %w", Device, err)
	}
	return uint32(link.Attrs().MTU), nil
}

// nic is the number of the stack's only device.
const nic = 1

// serve takes the packets of the device over.
func (g *Gateway) serve(fd int, mtu uint32) error {
	link, err := fdbased.New(&fdbased.Options{FDs: []int{fd}, MTU: mtu, RXChecksumOffload: true})
	if err != nil {
		return fmt.Errorf("read packets from %s: %w", Device, err)
	}
	// All destinations are the gateway's, as far as the stack is concerned.
	for _, failure := range []tcpip.Error{
		g.stack.CreateNIC(nic, link),
		g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFrom4(Address.As4()).WithPrefix()}, stack.AddressProperties{}),
		g.stack.SetPromiscuousMode(nic, true),
		g.stack.SetSpoofing(nic, true),
		set(g.stack, new(tcpip.TCPSACKEnabled(true))),
		set(g.stack, &tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: buffer, Max: maxBuffer}),
		set(g.stack, &tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: buffer, Max: maxBuffer}),
		set(g.stack, new(tcpip.TCPModerateReceiveBufferOption(true))),
	} {
		if failure != nil {
			return fmt.Errorf("set up the network stack of the gateway: %s", failure)
		}
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	g.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.stack, 0, maxDialing, g.tcp).HandlePacket)
	g.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(g.stack, g.udp).HandlePacket)
	return nil
}

// Sizes of the stack's buffers for each connection, in bytes: at first, and when more
// is on its way; and how many connections may be dialed at a time.
const (
	buffer     = 1 << 20
	maxBuffer  = 8 << 20
	maxDialing = 1024
)

func set(s *stack.Stack, option tcpip.SettableTransportProtocolOption) tcpip.Error {
	return s.SetTransportProtocolOption(tcp.ProtocolNumber, option)
}

// destination is where a flow was going, or the resolver.
func (g *Gateway) destination(id stack.TransportEndpointID) (string, error) {
	address, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	to := netip.AddrPortFrom(address, id.LocalPort)
	switch {
	case to == netip.AddrPortFrom(Address, 53) && g.options.Resolver.IsValid():
		return g.options.Resolver.String(), nil
	case Network.Contains(address):
		return "", fmt.Errorf("nobody listens at %v", to)
	}
	return to.String(), nil
}

// dialTimeout is how long a destination may take to answer: four times a SYN.
const dialTimeout = 10 * time.Second

func (g *Gateway) dial(network string, id stack.TransportEndpointID) (net.Conn, error) {
	to, err := g.destination(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	return g.options.Dial(ctx, network, to)
}

// tcp serves a connection. It is accepted when its destination has been.
func (g *Gateway) tcp(r *tcp.ForwarderRequest) {
	server, err := g.dial("tcp", r.ID())
	if err != nil {
		g.options.Log.Debug("a connection has no destination", "error", err)
		r.Complete(true)
		return
	}
	var queue waiter.Queue
	endpoint, failure := r.CreateEndpoint(&queue)
	r.Complete(failure != nil)
	if failure != nil {
		g.options.Log.Debug("accept a connection", "error", failure)
		server.Close()
		return
	}
	client := gonet.NewTCPConn(&queue, endpoint)
	if err := svcproxy.Relay(client, server); err != nil {
		g.options.Log.Debug("a connection has ended with an error", "destination", server.RemoteAddr(), "error", err)
	}
}

// udp serves what one client sends to one destination. It must not wait.
func (g *Gateway) udp(r *udp.ForwarderRequest) bool {
	select {
	case g.flows <- struct{}{}:
	default:
		g.options.Log.Debug("a datagram is one flow too many")
		return true
	}
	var queue waiter.Queue
	endpoint, failure := r.CreateEndpoint(&queue)
	if failure != nil {
		<-g.flows
		g.options.Log.Debug("take a datagram", "error", failure)
		return true
	}
	client := gonet.NewUDPConn(&queue, endpoint)
	id := r.ID()
	go func() {
		defer func() { <-g.flows }()
		defer client.Close()
		server, err := g.dial("udp", id)
		if err != nil {
			g.options.Log.Debug("a datagram has no destination", "error", err)
			return
		}
		defer server.Close()
		exchange(client, server)
	}()
	return true
}

// silence is after how long a flow of UDP is forgotten (nf_conntrack_udp_timeout_stream).
const silence = 120 * time.Second

// exchange passes datagrams on both ways until there is silence.
func exchange(client, server net.Conn) {
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			defer func() { done <- struct{}{} }()
			datagram := make([]byte, 1<<16)
			for {
				n, err := way[0].Read(datagram)
				if err != nil {
					return
				}
				heard := time.Now().Add(silence)
				_ = client.SetReadDeadline(heard) // fail on closed ones only
				_ = server.SetReadDeadline(heard)
				if _, err := way[1].Write(datagram[:n]); errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
					return
				}
			}
		}()
	}
	deadline := time.Now().Add(silence)
	_ = client.SetReadDeadline(deadline)
	_ = server.SetReadDeadline(deadline)
	<-done
	client.Close()
	server.Close()
	<-done
}
