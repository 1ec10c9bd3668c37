// Package loopback lets a server be reached from within its own process without a socket.
package loopback

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc/test/bufconn"
)

// buffer is how much of a connection is under way in one direction, in bytes.
const buffer = 64 << 10

// address is what both ends of a connection within the process are said to be: a server
// reads from it where a request comes from.
var address = &net.TCPAddr{IP: net.IPv6loopback}

// Listener accepts from the network, and from this process without the kernel: in a
// sandbox a request by a socket is some ten system calls, of which each is dear, and
// kube-apiserver asks itself some four hundred times until it is ready.
type Listener struct {
	net.Listener                   // of the network
	local        *bufconn.Listener // of this process
	accepted     chan accepted
	closing      sync.Once
	closed       chan struct{}
}

type accepted struct {
	conn net.Conn
	err  error
}

// New adds connections within the process to a listener. To close it closes both.
func New(network net.Listener) *Listener {
	l := &Listener{Listener: network, local: bufconn.Listen(buffer), accepted: make(chan accepted), closed: make(chan struct{})}
	go l.collect(network.Accept)
	go l.collect(func() (net.Conn, error) {
		c, err := l.local.Accept()
		if err != nil {
			return nil, err
		}
		return conn{c}, nil
	})
	return l
}

// collect accepts on one of the two until they are closed.
func (l *Listener) collect(accept func() (net.Conn, error)) {
	for {
		c, err := accept()
		select {
		case l.accepted <- accepted{c, err}:
		case <-l.closed:
			if err == nil {
				c.Close()
			}
			return
		}
	}
}

// Accept returns the next connection, wherever it comes from.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends both. Connections that were accepted stay.
func (l *Listener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	l.local.Close()
	return l.Listener.Close()
}

// DialContext connects from within the process, whatever the address.
func (l *Listener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	c, err := l.local.DialContext(ctx)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "loopback", Addr: l.Addr(), Err: err}
	}
	return conn{c}, nil
}

// conn is one end of a connection within the process.
type conn struct{ net.Conn }

func (c conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, timedOut(err)
}

func (c conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, timedOut(err)
}

// timedOut makes an error about a deadline the one that sockets give. That of bufconn is
// not temporary, and crypto/tls keeps such a one for all later reads: net/http, which ends
// its read in the background by a deadline, would close each connection of HTTP/1.1 after
// the first answer.
func timedOut(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return os.ErrDeadlineExceeded
	}
	return err
}

func (conn) LocalAddr() net.Addr  { return address }
func (conn) RemoteAddr() net.Addr { return address }
