package svcproxy

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// relay copies between two connections until both directions have ended.
//
// An end of data is passed on as such (half-close), an error as a reset. A
// direction reads only what it has been able to write, so a slow reader slows the
// sender.
type relay struct {
	client, server net.Conn
	idle           time.Duration // allowed once one direction has ended
	oneEnded       atomic.Bool
}

func (r *relay) run(toServer, toClient *atomic.Uint64) error {
	var up, down error
	var both sync.WaitGroup
	both.Go(func() { up = r.copy(r.server, r.client, toServer) })
	both.Go(func() { down = r.copy(r.client, r.server, toClient) })
	both.Wait()
	err := errors.Join(up, down)
	if err != nil {
		// Whoever is still there has not seen the end of one direction, or would send
		// into the void.
		settle(r.client)
		reset(r.client)
		reset(r.server)
	}
	return err
}

// copy is one direction.
func (r *relay) copy(dst, src net.Conn, bytes *atomic.Uint64) error {
	from, err := newSource(src, true)
	if err != nil {
		reset(dst)
		return err
	}
	for {
		data, err := from.next()
		if err == nil {
			err = r.write(dst, data, bytes)
			from.release()
			if err == nil {
				continue
			}
			// dst is gone, for the other direction too, which first copies what dst had
			// sent before.
			r.ended()
			return err
		}
		if !errors.Is(err, io.EOF) {
			settle(dst)
			reset(dst)
			reset(src)
			return err
		}
		half, ok := dst.(interface{ CloseWrite() error })
		if !ok {
			return errors.Join(dst.Close(), src.Close())
		}
		// ENOTCONN: dst is gone, which the other direction is told.
		if err := half.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			r.ended()
			return err
		}
		r.ended()
		return nil
	}
}

// write writes all, or as long as dst takes something: a deadline that passes with
// some of the data written is not that of an idle connection.
func (r *relay) write(dst net.Conn, data []byte, bytes *atomic.Uint64) error {
	for {
		r.keep()
		n, err := dst.Write(data)
		bytes.Add(uint64(n))
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			r.keep()
			return err
		}
		data = data[n:]
	}
}

// ended starts the clock for the other direction.
func (r *relay) ended() {
	r.oneEnded.Store(true)
	r.keep()
}

// keep winds the clock up.
func (r *relay) keep() {
	if !r.oneEnded.Load() {
		return
	}
	deadline := time.Now().Add(r.idle)
	_ = r.client.SetDeadline(deadline) // fails on a closed connection only
	_ = r.server.SetDeadline(deadline)
}

// bufferSize is the most that is read at a time, in bytes. (BenchmarkRelay shows
// what more and less would bring.)
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// source reads from a connection into buffers that it has only while there are
// data: the many connections on which nothing happens cost none.
type source struct {
	conn   net.Conn
	stream bool            // nothing read is the end, and not an empty datagram
	raw    syscall.RawConn // nil if conn is not a socket
	try    func(fd uintptr) bool
	buffer *[bufferSize]byte
	n      int
	err    error
}

func newSource(conn net.Conn, stream bool) (*source, error) {
	s := &source{conn: conn, stream: stream}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return s, nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	s.raw = raw
	s.try = s.tryRead
	return s, nil
}

// next waits for data, which are valid until release. At the end of a TCP
// connection the error is io.EOF.
func (s *source) next() ([]byte, error) {
	if s.raw == nil {
		s.take()
		s.n, s.err = s.conn.Read(s.buffer[:])
		if s.n > 0 {
			s.err = nil // comes again with the next Read
		}
	} else if err := s.raw.Read(s.try); err != nil {
		s.err = err
	}
	if s.err == nil && s.n == 0 && s.stream {
		s.err = io.EOF
	}
	if s.err != nil {
		s.release()
		return nil, s.err
	}
	return s.buffer[:s.n], nil
}

// tryRead reports whether there was something to read.
func (s *source) tryRead(fd uintptr) bool {
	s.take()
	for {
		n, err := unix.Read(int(fd), s.buffer[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			s.release()
			return false
		case err != nil:
			s.n, s.err = 0, os.NewSyscallError("read", err)
		default:
			s.n, s.err = n, nil
		}
		return true
	}
}

func (s *source) take() { s.buffer = buffers.Get().(*[bufferSize]byte) }

func (s *source) release() {
	if s.buffer != nil {
		buffers.Put(s.buffer)
		s.buffer = nil
	}
}

// reset ends a connection so that the peer sees an error and not an end of data.
func reset(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // fails on a closed connection only
	}
	conn.Close()
}

// settle waits until the peer has got what was written to it, at most a second: a
// reset throws away what is still on its way, such as the answer of a server that
// has read enough of a request.
func settle(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		settled := true
		err := raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
			if err != nil || info.State == unix.BPF_TCP_CLOSE { // nobody is there
				return
			}
			unacknowledged, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
			settled = err != nil || unacknowledged == 0
		})
		if err != nil || settled {
			return
		}
	}
}
