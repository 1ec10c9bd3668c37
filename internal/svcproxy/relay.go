package svcproxy

import (
	"errors"
	"fmt"
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
	client, server end
	idle           time.Duration // allowed once one direction has ended
	oneEnded       atomic.Bool
}

// end is one of the two connections.
type end struct {
	net.Conn
	shut    atomic.Bool  // an end of data is sent, or about to be
	written atomic.Int64 // when data were last, since the start of the program
}

// Relay copies between two connections until both directions have ended, and closes
// both. TCP connections should have CloseWrite() error, as those of package net have.
func Relay(client, server net.Conn) error {
	defer client.Close()
	defer server.Close()
	r := relay{client: end{Conn: client}, server: end{Conn: server}, idle: Options{}.withDefaults().HalfClosedTimeout}
	var toServer, toClient atomic.Uint64
	return r.run(&toServer, &toClient)
}

func (r *relay) run(toServer, toClient *atomic.Uint64) error {
	var up error
	var other sync.WaitGroup
	other.Go(func() { up = r.copy(&r.server, &r.client, toServer) })
	down := r.copy(&r.client, &r.server, toClient)
	other.Wait()
	err := errors.Join(up, down)
	if err != nil {
		// Whoever is still there has not seen the end of one direction, or would send
		// into the void.
		r.client.settle()
		reset(r.client.Conn)
		reset(r.server.Conn)
	}
	return err
}

// copy is one direction.
func (r *relay) copy(dst, src *end, bytes *atomic.Uint64) error {
	from, err := newSource(src.Conn, true)
	if err != nil {
		reset(dst.Conn)
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
		if errors.Is(err, io.EOF) {
			err = src.checkEnd()
		}
		if err != nil {
			dst.settle()
			reset(dst.Conn)
			reset(src.Conn)
			return err
		}
		err = dst.endData()
		r.ended()
		return err
	}
}

// checkEnd tells an end of data from a reset, of which the kernel tells once: if a
// write has had the error, a read gets what looks like an end. After an end the
// socket is not closed before our own end is sent.
func (e *end) checkEnd() error {
	tcp, ok := e.Conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	state, err := tcpState(tcp)
	if err != nil {
		return err
	}
	if state == unix.BPF_TCP_CLOSE && !e.shut.Load() { // shut is looked at last: it may be set now
		return os.NewSyscallError("read", unix.ECONNRESET)
	}
	return nil
}

// endData passes on an end of data, or of the connection if it knows no other.
func (e *end) endData() error {
	half, ok := e.Conn.(interface{ CloseWrite() error })
	if !ok {
		return e.Close()
	}
	e.shut.Store(true)
	return half.CloseWrite()
}

// write writes all, or as long as dst takes something: a deadline that passes with
// some of the data written is not that of an idle connection.
func (r *relay) write(dst *end, data []byte, bytes *atomic.Uint64) error {
	for {
		r.keep()
		n, err := dst.Write(data)
		dst.written.Store(int64(time.Since(start)))
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

// settle waits until the peer has got what was written to it, at most a second
// longer than the last write: a reset throws away what is still on its way, such
// as the answer of a server that has read enough of a request. gVisor does not say
// what a TCP socket has still to send (SIOCOUTQ: pkg/tcpip/transport/tcp,
// GetSockOptInt), so there it is always the second.
func (e *end) settle() {
	tcp, ok := e.Conn.(*net.TCPConn)
	if !ok || e.written.Load() == 0 {
		return
	}
	for ; time.Since(start) < time.Duration(e.written.Load())+time.Second; time.Sleep(5 * time.Millisecond) {
		state, err := tcpState(tcp)
		if err != nil || state == unix.BPF_TCP_CLOSE { // nobody is there
			return
		}
		unacknowledged, err := control(tcp, func(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.SIOCOUTQ) })
		if err == nil && unacknowledged == 0 {
			return
		}
	}
}

// start is what times are counted from: an atomic number is cheaper than a lock.
var start = time.Now()

// Sizes of buffers, in bytes. In gVisor, where each system call costs, a download
// through the proxy had 0.33 of the direct one's throughput with buffers of 64 KiB
// and 0.65 with those of 1 MiB, which is also what splice(2) had; on Linux there
// was little between them (BenchmarkSandbox, BenchmarkRelay). Of splice one could
// not tell which of the two connections has failed.
const (
	smallBuffer = 64 << 10 // more than any datagram has
	largeBuffer = 1 << 20
	// largeBuffers is how many there are for all proxies of the program. A slow
	// reader keeps one for as long as it likes.
	largeBuffers = 32
)

var (
	small      = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	large      = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	largeSlots = make(chan struct{}, largeBuffers)
)

// source reads from a connection into buffers that it has only while there are
// data: the many connections on which nothing happens cost none.
type source struct {
	conn   net.Conn
	stream bool            // nothing read is the end, and not an empty datagram
	raw    syscall.RawConn // nil if conn is not a socket
	try    func(fd uintptr) bool

	small *[smallBuffer]byte // of these
	large *[largeBuffer]byte // one or none
	bulk  bool               // the last read would have filled a small buffer
	n     int
	err   error
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
		s.n, s.err = s.conn.Read(s.take())
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
	s.bulk = s.n >= smallBuffer
	return s.buffer()[:s.n], nil
}

// tryRead reports whether there was something to read.
func (s *source) tryRead(fd uintptr) bool {
	buffer := s.take()
	for {
		n, err := unix.Read(int(fd), buffer)
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

// take takes a large buffer if there is use for it and one to be had.
func (s *source) take() []byte {
	if s.bulk && s.stream {
		select {
		case largeSlots <- struct{}{}:
			s.large = large.Get().(*[largeBuffer]byte)
			return s.large[:]
		default:
		}
	}
	s.small = small.Get().(*[smallBuffer]byte)
	return s.small[:]
}

func (s *source) buffer() []byte {
	if s.large != nil {
		return s.large[:]
	}
	return s.small[:]
}

func (s *source) release() {
	if s.large != nil {
		large.Put(s.large)
		s.large = nil
		<-largeSlots
	}
	if s.small != nil {
		small.Put(s.small)
		s.small = nil
	}
}

// reset ends a connection so that the peer sees an error and not an end of data.
func reset(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = tcp.SetLinger(0) // fails on a closed connection only
	}
	conn.Close()
}

// tcpState is the state of a socket as in the kernel's net/tcp_states.h, for whose
// numbers x/sys has other names.
func tcpState(conn *net.TCPConn) (uint8, error) {
	info, err := control(conn, func(fd int) (*unix.TCPInfo, error) {
		return unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	})
	if err != nil {
		return 0, fmt.Errorf("ask for the state of a TCP connection: %w", err)
	}
	return info.State, nil
}

// control asks the kernel about a socket.
func control[T any](conn syscall.Conn, ask func(fd int) (T, error)) (answer T, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return answer, err
	}
	var failure error
	err = raw.Control(func(fd uintptr) { answer, failure = ask(int(fd)) })
	return answer, errors.Join(err, failure)
}
