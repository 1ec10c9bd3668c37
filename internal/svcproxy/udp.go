package svcproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// UDP is a listener for datagrams. Each client has a socket of its own towards its
// destination, by which the answers find the way back.
type UDP struct {
	conn        datagrams
	address     netip.AddrPort
	destination func(Flow) (netip.AddrPort, error)
	options     Options
	counters    counters

	aborted context.Context // ended by Close
	abort   context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	clients map[Flow]*udpClient // grows in receive only

	full, refusing, failing minutely
}

// datagrams are those of clients, and the answers to them.
type datagrams interface {
	// read returns the next one, which is valid until the next read. It ends with
	// net.ErrClosed.
	read() ([]byte, Flow, error)
	// answer sends one to a client, from where that had sent its own to.
	answer(datagram []byte, to Flow) error
	Close() error
}

type udpClient struct {
	flow   Flow
	server net.Conn
	last   time.Time // something was sent, either way; held by UDP.mu
}

// udpSocket has datagrams to one address.
type udpSocket struct {
	*net.UDPConn
	local  netip.AddrPort
	buffer [smallBuffer]byte
}

func (s *udpSocket) read() ([]byte, Flow, error) {
	n, from, err := s.ReadFromUDPAddrPort(s.buffer[:])
	return s.buffer[:n], Flow{Client: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Local: s.local}, err
}

func (s *udpSocket) answer(datagram []byte, to Flow) error {
	_, err := s.WriteToUDPAddrPort(datagram, to.Client)
	return err
}

// ListenUDP serves datagrams to the address; a port 0 is replaced by a free one.
// The address has to be a single one of the node: an answer from 0.0.0.0 would
// leave with any of the node's addresses, and clients expect the one that they
// sent to.
func ListenUDP(address netip.AddrPort, to Destinations, options Options) (*UDP, error) {
	if address.Addr().IsUnspecified() {
		return nil, fmt.Errorf("proxy UDP: listen at %v: not one address of the node; make a listener for each", address)
	}
	if options.ListenPacket == nil {
		options.ListenPacket = new(net.ListenConfig).ListenPacket
	}
	packets, err := options.ListenPacket(context.Background(), "udp", address.String())
	if err != nil {
		return nil, fmt.Errorf("proxy UDP: %w", err)
	}
	conn, ok := packets.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("proxy UDP: a listener is %T", packets), packets.Close())
	}
	local := addrPort(conn.LocalAddr())
	options = options.withDefaults()
	options.Log = options.Log.With("listener", local)
	p := &UDP{conn: &udpSocket{UDPConn: conn, local: local}, address: local, options: options, destination: to.first}
	p.start()
	return p, nil
}

func (p *UDP) start() {
	p.clients = make(map[Flow]*udpClient)
	p.aborted, p.abort = context.WithCancel(context.Background())
	p.running.Go(p.receive)
}

// Addr is where the proxy listens. It is not valid of ListenEgressUDP.
func (p *UDP) Addr() netip.AddrPort { return p.address }

// Counters are those of now.
func (p *UDP) Counters() Counters { return p.counters.snapshot() }

// receive takes the datagrams of all clients.
func (p *UDP) receive() {
	var delay time.Duration
	for {
		datagram, flow, err := p.conn.read()
		switch {
		case err == nil:
			delay = 0
			p.forward(flow, datagram)
		case errors.Is(err, net.ErrClosed):
			return
		default: // no memory, as with TCP's accept
			delay = retryDelay(delay)
			p.failing.log(p.options.Log, "cannot receive a datagram: trying again", "error", err)
			select {
			case <-time.After(delay):
			case <-p.aborted.Done():
			}
		}
	}
}

// forward sends a datagram on. One that cannot be sent is lost, as UDP's may be.
func (p *UDP) forward(flow Flow, datagram []byte) {
	client := p.find(flow)
	if client == nil {
		if client = p.add(flow); client == nil {
			return
		}
	}
	n, err := client.server.Write(datagram)
	if errors.Is(err, syscall.ECONNREFUSED) { // what became of the one before: udp(7)
		n, err = client.server.Write(datagram)
	}
	if err != nil {
		p.options.Log.Debug("a datagram cannot be sent on", "client", flow.Client, "error", err)
	}
	p.counters.toDestination.Add(uint64(n))
}

// find returns a client, which now has been heard.
func (p *UDP) find(flow Flow) *udpClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	client := p.clients[flow]
	if client != nil {
		client.last = time.Now()
	}
	return client
}

// add makes a new client, or returns nil.
func (p *UDP) add(flow Flow) *udpClient {
	p.counters.total.Add(1)
	to, err := p.destination(flow)
	if err != nil {
		p.counters.refused.Add(1)
		p.refusing.log(p.options.Log, "a datagram is refused", "reason", err)
		return nil
	}
	p.makeRoom()
	ctx, cancel := context.WithTimeout(p.aborted, p.options.DialTimeout)
	defer cancel()
	server, err := p.options.Dial(ctx, "udp", to.String())
	if err != nil {
		p.counters.failed.Add(1)
		p.failing.log(p.options.Log, "a datagram has no destination", "client", flow.Client, "error", err)
		return nil
	}
	client := &udpClient{flow: flow, server: server, last: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.aborted.Err() != nil {
		server.Close()
		return nil
	}
	p.clients[flow] = client
	p.counters.open.Add(1)
	p.running.Go(func() {
		defer p.counters.open.Add(-1)
		defer p.forget(client)
		if err := p.answer(client); err != nil && !errors.Is(err, net.ErrClosed) {
			p.options.Log.Debug("a client of UDP has ended with an error", "client", flow.Client, "error", err)
		}
	})
	return client
}

// makeRoom ends the client that was silent the longest if there is no room for
// another.
func (p *UDP) makeRoom() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.clients) < p.options.MaxFlows {
		return
	}
	p.full.log(p.options.Log, "the proxy has no room for more clients of UDP: the most silent one is forgotten", "limit", p.options.MaxFlows)
	var oldest *udpClient
	for _, client := range p.clients {
		if oldest == nil || client.last.Before(oldest.last) {
			oldest = client
		}
	}
	delete(p.clients, oldest.flow)
	oldest.server.Close()
}

// answer sends back what comes from a client's destination, until both have been
// silent for the time that is allowed.
func (p *UDP) answer(client *udpClient) error {
	from, err := newSource(client.server, false)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(p.options.UDPIdleTimeout)
	for {
		if err := client.server.SetReadDeadline(deadline); err != nil {
			return err
		}
		datagram, err := from.next()
		switch {
		case err == nil:
			p.heard(client)
			if err := p.conn.answer(datagram, client.flow); err != nil {
				p.options.Log.Debug("an answer cannot be sent", "client", client.flow.Client, "bytes", len(datagram), "error", err)
			} else {
				p.counters.toClient.Add(uint64(len(datagram)))
			}
			from.release()
		case errors.Is(err, os.ErrDeadlineExceeded):
			var over bool
			if deadline, over = p.silent(client); over {
				return nil
			}
		case errors.Is(err, syscall.ECONNREFUSED): // nobody is there yet, or again
		default:
			return err
		}
	}
}

func (p *UDP) heard(client *udpClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	client.last = time.Now()
}

// Keep forgets the clients whose destination is none of these: what they send next goes
// to another one. It is what kube-proxy deletes entries of conntrack for
// (k8s.io/kubernetes pkg/proxy/conntrack/cleanup.go).
func (p *UDP) Keep(destinations []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for flow, client := range p.clients {
		if !slices.Contains(destinations, addrPort(client.server.RemoteAddr())) {
			delete(p.clients, flow)
			client.server.Close()
		}
	}
}

// silent forgets a client that was silent for long enough, and says until when
// another one may be.
func (p *UDP) silent(client *udpClient) (until time.Time, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	until = client.last.Add(p.options.UDPIdleTimeout)
	if over = !time.Now().Before(until); over {
		p.remove(client)
	}
	return until, over
}

func (p *UDP) forget(client *udpClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(client)
	client.server.Close()
}

// remove leaves alone one that has come anew from the same address.
func (p *UDP) remove(client *udpClient) {
	if p.clients[client.flow] == client {
		delete(p.clients, client.flow)
	}
}

// Close ends all at once: of datagrams nobody knows which is the last, so there is
// nothing to wait for. Nothing of the proxy is left when it returns.
func (p *UDP) Close(context.Context) error {
	p.mu.Lock()
	p.abort()
	err := p.conn.Close()
	for _, client := range p.clients {
		client.server.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
	if errors.Is(err, net.ErrClosed) { // by the Close before
		return nil
	}
	return err
}
