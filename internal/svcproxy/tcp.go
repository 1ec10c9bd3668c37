package svcproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// TCP is a listener for TCP connections, and those that it has accepted.
type TCP struct {
	listener     net.Listener
	destinations Destinations
	options      Options
	counters     counters

	slots     chan struct{} // one for each connection
	closed    chan struct{} // no more is accepted
	closeOnce sync.Once
	aborted   context.Context // ended when connections are no longer waited for
	abort     context.CancelFunc
	running   sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // to abort

	full, refusing, failing minutely
}

// ListenTCP serves connections to the address; a port 0 is replaced by a free one.
func ListenTCP(address netip.AddrPort, to Destinations, options Options) (*TCP, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	// A socket of MPTCP, Go's default for listeners, does not know the option
	// SO_ORIGINAL_DST (net/mptcp/sockopt.c).
	config.SetMultipathTCP(false)
	network := "tcp4" // "tcp" makes 0.0.0.0 a socket of IPv6, of which gVisor does not know it
	if address.Addr().Is6() {
		network = "tcp6"
	}
	if options.Listen == nil {
		options.Listen = config.Listen
	}
	listener, err := options.Listen(context.Background(), network, address.String())
	if err != nil {
		return nil, fmt.Errorf("proxy TCP: %w", err)
	}
	return serveTCP(listener, to, options), nil
}

func serveTCP(listener net.Listener, to Destinations, options Options) *TCP {
	options = options.withDefaults()
	p := &TCP{
		listener: listener, destinations: to, options: options,
		slots: make(chan struct{}, options.MaxFlows), closed: make(chan struct{}), conns: make(map[net.Conn]bool),
	}
	p.aborted, p.abort = context.WithCancel(context.Background())
	p.running.Go(p.accept)
	return p
}

// Addr is where the proxy listens.
func (p *TCP) Addr() netip.AddrPort { return addrPort(p.listener.Addr()) }

// Counters are those of now.
func (p *TCP) Counters() Counters { return p.counters.snapshot() }

// accept hands out connections. With all slots taken it waits, and clients in the
// listener's backlog with it.
func (p *TCP) accept() {
	var delay time.Duration
	for {
		select {
		case p.slots <- struct{}{}:
		default:
			p.full.log(p.options.Log, "the proxy has no more connections to give: new ones wait", "listener", p.Addr(), "limit", p.options.MaxFlows)
			select {
			case p.slots <- struct{}{}:
			case <-p.closed:
				return
			}
		}
		client, err := p.listener.Accept()
		if err == nil {
			delay = 0
			p.running.Go(func() {
				defer func() { <-p.slots }()
				p.serve(client)
			})
			continue
		}
		<-p.slots
		// Everything else passes: no more file descriptors or memory, or an error of
		// the connection that was to be accepted (accept(2)).
		if errors.Is(err, net.ErrClosed) {
			return
		}
		delay = retryDelay(delay)
		p.failing.log(p.options.Log, "cannot accept a connection: trying again", "listener", p.Addr(), "error", err)
		select {
		case <-time.After(delay):
		case <-p.closed:
			return
		}
	}
}

// serve forwards one connection until it ends.
func (p *TCP) serve(client net.Conn) {
	p.counters.total.Add(1)
	p.counters.open.Add(1)
	defer p.counters.open.Add(-1)
	if !p.own(client) {
		return
	}
	defer p.disown(client)

	flow := Flow{Client: addrPort(client.RemoteAddr()), Local: addrPort(client.LocalAddr()), conn: client}
	to, err := p.destinations.of(flow)
	if err != nil {
		p.counters.refused.Add(1)
		p.refusing.log(p.options.Log, "a connection is refused", "listener", p.Addr(), "reason", err)
		reset(client)
		return
	}
	server, err := p.dial(to)
	if err != nil {
		p.counters.failed.Add(1)
		p.options.Log.Debug("a connection has no destination", "listener", p.Addr(), "client", flow.Client, "error", err)
		reset(client)
		return
	}
	if !p.own(server) {
		return
	}
	defer p.disown(server)
	r := relay{client: end{Conn: client}, server: end{Conn: server}, idle: p.options.HalfClosedTimeout}
	if err := r.run(&p.counters.toDestination, &p.counters.toClient); err != nil {
		p.options.Log.Debug("a connection has ended with an error", "listener", p.Addr(), "client", flow.Client, "destination", server.RemoteAddr(), "error", err)
	}
}

// dial connects to the first destination that answers.
func (p *TCP) dial(to []netip.AddrPort) (net.Conn, error) {
	var failures []error
	for _, destination := range to {
		ctx, cancel := context.WithTimeout(p.aborted, p.options.DialTimeout)
		conn, err := p.options.Dial(ctx, "tcp", destination.String())
		cancel()
		if err == nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetKeepAliveConfig(keepAlive) // of a Dialer that is not ours
			}
			return conn, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// own notes a connection, which abort will end. If that has happened, it ends at once.
func (p *TCP) own(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.aborted.Err() != nil {
		reset(conn)
		return false
	}
	p.conns[conn] = true
	return true
}

// disown closes a connection; one that has been reset already stays so.
func (p *TCP) disown(conn net.Conn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	conn.Close()
}

// Close accepts no more and waits until the connections have ended. When ctx ends
// before, it resets them and says how many. Nothing of the proxy is left when it
// returns.
func (p *TCP) Close(ctx context.Context) error {
	p.closeOnce.Do(func() {
		close(p.closed)
		p.listener.Close()
	})
	drained := make(chan struct{})
	go func() {
		p.running.Wait()
		close(drained)
	}()
	select {
	case <-drained:
		p.abort()
		return nil
	case <-ctx.Done():
	}
	open := p.abortAll()
	<-drained
	if open == 0 {
		return nil
	}
	return fmt.Errorf("close the proxy at %v: %d connections had not ended and were reset: %w", p.Addr(), open, context.Cause(ctx))
}

func (p *TCP) abortAll() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abort()
	open := p.counters.open.Load()
	for conn := range p.conns {
		reset(conn)
	}
	return open
}
