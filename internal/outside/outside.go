// Package outside lets a process in a network namespace of its own use the network
// that is outside: who has stayed there opens sockets and passes them in, over a pair
// of connected sockets (SCM_RIGHTS, unix(7)). A socket stays in the network that it was
// made in, so what is sent on it takes no further way than that of any other program.
package outside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// request asks for one socket. With it comes the socket that the answer goes to.
type request struct {
	Do      string `json:"do"`
	Network string `json:"network"`
	Address string `json:"address"`
}

// What can be asked for. Addresses are no socket: the answer has them.
const (
	dial         = "dial"
	listen       = "listen"
	listenPacket = "listen for packets"
	addresses    = "addresses"
)

// answer comes with the socket, or with an error.
type answer struct {
	Error     string       `json:"error,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// message is the largest one, in bytes.
const message = 4096

// dialTimeout is how long a connection may take: who has asked may have given up before.
const dialTimeout = 30 * time.Second

// Pair makes the two ends: one for Serve, and one for the process inside.
func Pair() (here *net.UnixConn, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	there = os.NewFile(uintptr(fds[1]), "outside")
	if here, err = conn(os.NewFile(uintptr(fds[0]), "inside")); err != nil {
		there.Close()
	}
	return here, there, err
}

// conn takes a file over that is a socket.
func conn(file *os.File) (*net.UnixConn, error) {
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	unixConn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is not a Unix socket", c), c.Close())
	}
	return unixConn, nil
}

// Explain says more about why a socket could not be opened.
type Explain func(network, address string, err error) error

// Serve opens sockets for the process inside, until that has ended, and tells it the local
// addresses. An error goes there as text, as explain has it.
func Serve(inside *net.UnixConn, explain Explain, local func() []netip.Addr) {
	defer inside.Close()
	for {
		data, file, err := receive(inside)
		if err != nil {
			return
		}
		go func() {
			reply, err := conn(file)
			if err != nil {
				return
			}
			defer reply.Close()
			serve(reply, data, explain, local)
		}()
	}
}

func serve(reply *net.UnixConn, data []byte, explain Explain, local func() []netip.Addr) {
	var r request
	err := json.Unmarshal(data, &r)
	var a answer
	var opened socket
	switch {
	case err != nil:
		err = fmt.Errorf("understand a request: %w", err)
	case r.Do == addresses:
		a.Addresses = local()
	default:
		if opened, err = open(r, explain); err == nil {
			defer opened.Close()
		}
	}
	if err != nil {
		a, opened = answer{Error: err.Error()}, nil
	}
	_ = send(reply, a, opened) // who has asked may be gone
}

// socket is a connection or a listener.
type socket interface {
	syscall.Conn
	Close() error
}

func open(r request, explain Explain) (socket, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	var opened any
	var err error
	switch r.Do {
	case dial:
		opened, err = new(net.Dialer).DialContext(ctx, r.Network, r.Address)
	case listen:
		opened, err = new(net.ListenConfig).Listen(ctx, r.Network, r.Address)
	case listenPacket:
		opened, err = new(net.ListenConfig).ListenPacket(ctx, r.Network, r.Address)
	default:
		err = fmt.Errorf("nobody knows how to %q", r.Do)
	}
	if err != nil {
		return nil, explain(r.Network, r.Address, err)
	}
	s, ok := opened.(socket)
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", opened)
	}
	return s, nil
}

// Network is the network outside, for the process inside.
type Network struct {
	conn *net.UnixConn
	gone chan struct{}
}

// Use is the network at the other end of a file that Pair has made.
func Use(file *os.File) (*Network, error) {
	c, err := conn(file)
	if err != nil {
		return nil, fmt.Errorf("use the network outside: %w", err)
	}
	n := &Network{conn: c, gone: make(chan struct{})}
	go func() {
		defer close(n.gone)
		_, _ = c.Read(make([]byte, 1)) // nothing is ever sent: this is the end
	}()
	return n, nil
}

// Gone is closed when nobody is there any more.
func (n *Network) Gone() <-chan struct{} { return n.gone }

// Dial connects from outside. The network and the address are those of [net.Dial]; an
// address is no name.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, file, err := n.ask(ctx, request{dial, network, address})
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FileConn(file)
}

// Addresses are the local ones outside.
func (n *Network) Addresses(ctx context.Context) ([]netip.Addr, error) {
	a, _, err := n.ask(ctx, request{Do: addresses})
	return a.Addresses, err
}

// ListenPacket listens outside for packets.
func (n *Network) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	_, file, err := n.ask(ctx, request{listenPacket, network, address})
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FilePacketConn(file)
}

// Listen listens outside.
func (n *Network) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	_, file, err := n.ask(ctx, request{listen, network, address})
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FileListener(file)
}

// ask sends a request and waits for the answer, with the socket unless it is about
// addresses.
func (n *Network) ask(ctx context.Context, r request) (answer, *os.File, error) {
	reply, theirs, err := Pair()
	if err != nil {
		return answer{}, nil, err
	}
	defer reply.Close()
	err = send(n.conn, r, theirs)
	theirs.Close()
	if err != nil {
		return answer{}, nil, fmt.Errorf("ask for a socket outside: %w", err)
	}
	defer context.AfterFunc(ctx, func() { reply.Close() })()
	data, file, err := receive(reply)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var a answer
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("%s %s %s outside: %w", r.Do, r.Network, r.Address, err)
	case a.Error != "":
		err = errors.New(a.Error)
	case file == nil && r.Do != addresses:
		err = fmt.Errorf("%s %s %s outside: there came no socket", r.Do, r.Network, r.Address)
	default:
		return a, file, nil
	}
	if file != nil {
		file.Close()
	}
	return answer{}, nil, err
}

// send sends a value, with a socket if there is one.
func send(to *net.UnixConn, value any, with syscall.Conn) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if with == nil {
		_, _, err := to.WriteMsgUnix(data, nil, nil)
		return err
	}
	raw, err := with.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) { _, _, failure = to.WriteMsgUnix(data, unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, failure)
}

// receive reads a message, and the file that came with it or nil.
func receive(from *net.UnixConn) ([]byte, *os.File, error) {
	data, control := make([]byte, message), make([]byte, unix.CmsgSpace(4))
	n, controls, _, _, err := from.ReadMsgUnix(data, control)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 && controls == 0 {
		return nil, nil, net.ErrClosed
	}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil || len(messages) == 0 {
		return data[:n], nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return data[:n], nil, err
	}
	return data[:n], os.NewFile(uintptr(fds[0]), "passed"), nil
}
