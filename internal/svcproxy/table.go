package svcproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Table is the listeners of all ports. It changes with them: what stays the same
// keeps its connections.
type Table struct {
	options Options
	// local are the addresses of the node that a port at all of them has: for UDP,
	// whose answers have to come from the address that was asked, and where ports at all
	// addresses exclude those at one.
	local func() []netip.Addr
	each  bool // whether TCP too is listened for at each of them

	mu        sync.Mutex
	listeners map[socket]*entry
}

// socket is where a listener is.
type socket struct {
	protocol corev1.Protocol
	address  netip.AddrPort
}

type entry struct {
	name      string
	endpoints *endpoints
	listener  interface{ Close(context.Context) error }
}

// NewTable returns a table without listeners.
func NewTable(local func() []netip.Addr, options Options) *Table {
	each := local != nil && options.Listen == nil && exclusive()
	return &Table{options: options.withDefaults(), local: local, each: each, listeners: make(map[socket]*entry)}
}

// exclusive reports whether who listens at all addresses excludes others that listen at
// one, with the same port: Linux does that (socket(7), SO_REUSEADDR), gVisor does not.
// A port of the node could keep a Service from having its own.
var exclusive = sync.OnceValue(func() bool {
	one, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return false
	}
	defer one.Close()
	all, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", one.Addr().(*net.TCPAddr).Port))
	if err != nil {
		return true
	}
	all.Close()
	return false
})

// drain is how long connections of a port that is gone may go on.
const drain = 30 * time.Second

// Apply opens the listeners of new ports, gives those that exist their endpoints,
// and closes the others, whose connections may end by themselves for a while. It
// returns the ports that could not be opened; the next Apply tries again.
func (t *Table) Apply(ports []Port) []Failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	var failures []Failure
	wanted := make(map[socket]Port)
	for _, port := range ports {
		for _, s := range t.socketsOf(port) {
			if other, taken := wanted[s]; taken {
				failures = append(failures, Failure{port, s.address, fmt.Errorf("it is that of %s", other.Name)})
				continue
			}
			wanted[s] = port
		}
	}
	for s, e := range t.listeners {
		if _, ok := wanted[s]; !ok {
			delete(t.listeners, s)
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), drain)
				defer cancel()
				if err := e.listener.Close(ctx); err != nil {
					t.options.Log.Info("connections to a port that is gone were cut", "port", e.name, "error", err)
				}
			}()
		}
	}
	for s, port := range wanted {
		e, ok := t.listeners[s]
		if !ok {
			var err error
			if e, err = t.open(s, port.Name); err != nil {
				failures = append(failures, Failure{port, s.address, err})
				continue
			}
			t.listeners[s] = e
		}
		e.endpoints.set(port)
		if udp, ok := e.listener.(*UDP); ok {
			udp.Keep(port.Endpoints)
		}
	}
	return failures
}

// Failure is a port that could not be opened at one of its addresses.
type Failure struct {
	Port Port
	At   netip.AddrPort
	Err  error
}

func (f Failure) Error() string {
	return fmt.Sprintf("open %s %v for %s: %v", f.Port.Protocol, f.At, f.Port.Name, f.Err)
}

func (t *Table) socketsOf(port Port) []socket {
	addresses := port.Addresses
	switch {
	case len(addresses) > 0:
	case port.Protocol == corev1.ProtocolUDP || t.each:
		addresses = t.local()
	default:
		addresses = []netip.Addr{netip.IPv4Unspecified()}
	}
	var sockets []socket
	for _, address := range addresses {
		sockets = append(sockets, socket{port.Protocol, netip.AddrPortFrom(address, port.Port)})
	}
	return sockets
}

func (t *Table) open(s socket, name string) (*entry, error) {
	e := &entry{name: name, endpoints: &endpoints{name: name}}
	var err error
	switch s.protocol {
	case corev1.ProtocolTCP:
		e.listener, err = ListenTCP(s.address, e.endpoints.choose, t.options)
	case corev1.ProtocolUDP:
		e.listener, err = ListenUDP(s.address, e.endpoints.choose, t.options)
	default:
		err = fmt.Errorf("the protocol %s is not served", s.protocol)
	}
	return e, err
}

// Len is the number of listeners.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.listeners)
}

// Close closes all listeners, and waits for their connections until ctx ends.
func (t *Table) Close(ctx context.Context) error {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.listeners))
	clear(t.listeners)
	t.mu.Unlock()
	results := make(chan error)
	for _, e := range all {
		go func() { results <- e.listener.Close(ctx) }()
	}
	var failures error
	for range all {
		failures = errors.Join(failures, <-results)
	}
	return failures
}

// endpoints chooses where a flow to one listener goes.
type endpoints struct {
	name string

	mu       sync.Mutex
	list     []netip.AddrPort
	next     int
	affinity time.Duration
	clients  map[netip.Addr]choice // with affinity
}

// choice is the endpoint that a client has, and when it was last asked for.
type choice struct {
	endpoint netip.AddrPort
	last     time.Time
}

// maxClients bounds what is remembered for affinity, per listener.
const maxClients = 8192

func (e *endpoints) set(port Port) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list, e.affinity = port.Endpoints, port.Affinity
	if e.affinity == 0 {
		e.clients = nil
	}
}

// choose returns all endpoints, each in turn first: if that refuses, the next one is
// dialed.
func (e *endpoints) choose(flow Flow) ([]netip.AddrPort, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) == 0 {
		return nil, fmt.Errorf("%s has no endpoints that are ready", e.name)
	}
	first := e.next % len(e.list)
	e.next = first + 1
	if e.affinity > 0 {
		now, client := time.Now(), flow.Client.Addr()
		if known, ok := e.clients[client]; ok && now.Sub(known.last) < e.affinity {
			if i := slices.Index(e.list, known.endpoint); i >= 0 {
				first = i
			}
		}
		e.remember(client, choice{e.list[first], now})
	}
	return slices.Concat(e.list[first:], e.list[:first]), nil
}

func (e *endpoints) remember(client netip.Addr, c choice) {
	if e.clients == nil {
		e.clients = make(map[netip.Addr]choice)
	}
	if _, ok := e.clients[client]; !ok && len(e.clients) >= maxClients {
		maps.DeleteFunc(e.clients, func(_ netip.Addr, old choice) bool { return c.last.Sub(old.last) >= e.affinity })
		for other := range e.clients { // all of them are in use: some client begins anew
			if len(e.clients) < maxClients {
				break
			}
			delete(e.clients, other)
		}
	}
	e.clients[client] = c
}
