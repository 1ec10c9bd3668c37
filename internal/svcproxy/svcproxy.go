package svcproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Flow is a TCP connection, or what one client sends by UDP, as it has reached a
// listener.
type Flow struct {
	Client netip.AddrPort
	Local  netip.AddrPort // where it has arrived, behind any translation

	conn net.Conn // of TCP
}

// Destinations says where a flow goes: the addresses are dialed in their order
// until one answers. Of UDP the first is taken, because nothing can be known of
// it. A flow with an error is refused.
type Destinations func(Flow) ([]netip.AddrPort, error)

// To is the Destinations of a listener with one destination, like a hostPort.
func To(destination netip.AddrPort) Destinations {
	return func(Flow) ([]netip.AddrPort, error) { return []netip.AddrPort{destination}, nil }
}

// Dialer makes the connection to a destination; network is tcp or udp. A TCP
// connection should have CloseWrite() error, as that of package net has: without,
// the end of one direction is the end of both. A dialer for udp should not wait:
// it is called between two datagrams.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// Options are those of every listener. The zero value is useful.
type Options struct {
	Log *slog.Logger // none if nil
	// Dial is that of net.Dialer if nil.
	Dial Dialer
	// Listen is that of net.ListenConfig if nil.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
	// ListenPacket is that of net.ListenConfig if nil. What it returns is a *net.UDPConn.
	ListenPacket func(ctx context.Context, network, address string) (net.PacketConn, error)
	// DialTimeout is for each destination; 0 means 10 s, in which Linux sends a SYN
	// four times.
	DialTimeout time.Duration
	// MaxFlows is how many connections, or clients of UDP, are served at a time; 0
	// means 10240. More TCP connections wait in the backlog of the listener. A new
	// client of UDP ends the one that was silent the longest.
	MaxFlows int
	// HalfClosedTimeout is how long nothing may be sent on a TCP connection of which
	// one direction has ended; 0 means 1 h, which is kube-proxy's
	// --conntrack-tcp-timeout-close-wait. One that is open both ways has no limit:
	// TCP keep-alive finds out if the other side is gone.
	HalfClosedTimeout time.Duration
	// UDPIdleTimeout is after how long of silence both ways a client of UDP is
	// forgotten; 0 means 120 s, which is nf_conntrack_udp_timeout_stream.
	UDPIdleTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 10 * time.Second
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = 10240
	}
	if o.HalfClosedTimeout == 0 {
		o.HalfClosedTimeout = time.Hour
	}
	if o.UDPIdleTimeout == 0 {
		o.UDPIdleTimeout = 120 * time.Second
	}
	return o
}

// keepAlive finds a peer that is gone after 60 + 8 × 15 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 8}

// Counters are those of one listener since it was made. A flow is a TCP
// connection or a client of UDP.
type Counters struct {
	Open          int64  `json:"open"`
	Total         uint64 `json:"total"`         // flows that came, whatever became of them
	Refused       uint64 `json:"refused"`       // by Destinations
	Failed        uint64 `json:"failed"`        // no destination answered
	ToDestination uint64 `json:"toDestination"` // bytes
	ToClient      uint64 `json:"toClient"`      // bytes
}

type counters struct {
	open                                            atomic.Int64
	total, refused, failed, toDestination, toClient atomic.Uint64
}

func (c *counters) snapshot() Counters {
	return Counters{
		Open: c.open.Load(), Total: c.total.Load(), Refused: c.refused.Load(), Failed: c.failed.Load(),
		ToDestination: c.toDestination.Load(), ToClient: c.toClient.Load(),
	}
}

// minutely lets one message through in a minute.
type minutely struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

// log logs with the number of messages that were left out since the last one.
func (m *minutely) log(to *slog.Logger, message string, args ...any) {
	m.mu.Lock()
	now := time.Now()
	if !m.last.IsZero() && now.Sub(m.last) < time.Minute {
		m.skipped++
		m.mu.Unlock()
		return
	}
	args = append(args, "notLogged", m.skipped)
	m.last, m.skipped = now, 0
	m.mu.Unlock()
	to.Warn(message, args...)
}

// retryDelay grows with every error in a row, as that of net/http's Serve.
func retryDelay(last time.Duration) time.Duration {
	return min(max(2*last, 5*time.Millisecond), time.Second)
}

// of asks for the destinations of a flow, which have to be one at least, and none
// of them the listener itself.
func (d Destinations) of(flow Flow) ([]netip.AddrPort, error) {
	to, err := d(flow)
	switch {
	case err != nil:
		return nil, err
	case len(to) == 0:
		return nil, fmt.Errorf("%v, from %v, has no destination", flow.Local, flow.Client)
	case slices.Contains(to, flow.Local):
		return nil, fmt.Errorf("what %v sends to %v would come back to the proxy itself", flow.Client, flow.Local)
	}
	return to, nil
}

// first is the one that datagrams go to.
func (d Destinations) first(flow Flow) (netip.AddrPort, error) {
	to, err := d.of(flow)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return to[0], nil
}

// addrPort is the address of an end of a TCP or UDP connection.
func addrPort(address net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := address.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
