package svcproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo does not use splice, whose pipes would stay open until a garbage collection.
func echo(conn *net.TCPConn) { io.Copy(struct{ io.Writer }{conn}, conn) }

// checkEcho sends a word through a connection and back.
func checkEcho(t testing.TB, conn net.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "word" {
		t.Fatalf("got %q back: %v", got, err)
	}
}

// log is a log that may be read while it is written.
type log struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(p)
}

func (l *log) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buffer.String(), message)
}

func (l *log) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestHalfClose(t *testing.T) {
	checkNothingLeft(t)
	question, answer := strings.Repeat("question", 1000), strings.Repeat("answer", 1000)
	// first sends all, ends, and then reads all; second the other way round.
	first := func(conn *net.TCPConn, send string) string {
		io.WriteString(conn, send)
		conn.CloseWrite()
		got, _ := io.ReadAll(conn)
		return string(got)
	}
	second := func(conn *net.TCPConn, send string) string {
		got, _ := io.ReadAll(conn)
		io.WriteString(conn, send)
		return string(got)
	}
	for name, ends := range map[string]struct {
		client, server func(*net.TCPConn, string) string
	}{
		"client first": {first, second},
		"server first": {second, first},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan string, 1)
			server := listen(t, func(conn *net.TCPConn) { asked <- ends.server(conn, answer) })
			p := proxyTo(t, To(server), Options{})
			client := dial(t, p.Addr())
			got := ends.client(client, question)
			client.Close()
			if got != answer {
				t.Errorf("the client got %d bytes of %d", len(got), len(answer))
			}
			if got := <-asked; got != question {
				t.Errorf("the server got %d bytes of %d", len(got), len(question))
			}
		})
	}
}

// A connection that is closed one way and on which something still happens, with
// pauses up to the timeout, stays; a silent one is reset.
func TestHalfClosedTimeout(t *testing.T) {
	checkNothingLeft(t)
	const timeout = time.Second // which a busy machine does not pause for
	next, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(done) })
	server := listen(t, func(conn *net.TCPConn) {
		io.Copy(io.Discard, conn)
		for range next {
			conn.Write([]byte("x"))
		}
		<-done
	})
	p := proxyTo(t, To(server), Options{HalfClosedTimeout: timeout})
	client := dial(t, p.Addr())
	client.CloseWrite()
	for start := time.Now(); time.Since(start) < 2*timeout; {
		next <- struct{}{}
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Fatalf("the connection has ended after %v: %v", time.Since(start), err)
		}
	}
	close(next)
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the silent connection has ended with %v, not with a reset", err)
	}
}

// slowConn takes one byte until a deadline passes.
type slowConn struct {
	net.Conn
	got []byte
}

func (c *slowConn) Write(data []byte) (int, error) {
	c.got = append(c.got, data[0])
	if len(data) == 1 {
		return 1, nil
	}
	return 1, &net.OpError{Op: "write", Err: os.ErrDeadlineExceeded}
}

func TestSlowWriteIsNotIdle(t *testing.T) {
	var conn slowConn
	var bytes atomic.Uint64
	if err := new(relay).write(&end{Conn: &conn}, []byte("word"), &bytes); err != nil || string(conn.got) != "word" || bytes.Load() != 4 {
		t.Errorf("wrote %q, counted %d: %v", conn.got, bytes.Load(), err)
	}
}

// A connection that is open both ways may be silent for longer.
func TestOpenConnectionHasNoTimeout(t *testing.T) {
	checkNothingLeft(t)
	const timeout = 50 * time.Millisecond
	p := proxyTo(t, To(listen(t, echo)), Options{HalfClosedTimeout: timeout})
	client := dial(t, p.Addr())
	checkEcho(t, client)
	client.SetReadDeadline(time.Now().Add(4 * timeout))
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection has ended with %d bytes: %v", n, err)
	}
	client.SetReadDeadline(time.Now().Add(limit))
	checkEcho(t, client)
}

// A server answers and does not want the rest of the question, while the client
// has not read the answer yet: that is not thrown away.
func TestEarlyAnswerArrives(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn) error{
		"reset":           func(*net.TCPConn) error { return nil },
		"end, then reset": (*net.TCPConn).CloseWrite,
	} {
		t.Run(name, func(t *testing.T) {
			checkNothingLeft(t)
			answer := strings.Repeat("enough", 50_000)
			var p *TCP
			made, gone := make(chan struct{}), make(chan struct{})
			server := listen(t, func(conn *net.TCPConn) {
				<-made
				io.WriteString(conn, answer)
				end(conn)
				await(t, "the proxy to have the answer", func() bool { return p.Counters().ToClient == uint64(len(answer)) })
				conn.SetLinger(0)
				conn.Close()
				close(gone)
			})
			p = proxyTo(t, To(server), Options{})
			close(made)
			conn, err := (&net.Dialer{Control: smallReceiveBuffer}).Dial("tcp4", p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			client := prepare(t, conn)
			written := make(chan error, 1)
			go func() {
				_, err := io.Copy(client, endless{})
				written <- err
			}()
			<-gone
			got, err := io.ReadAll(client)
			if string(got) != answer {
				t.Errorf("the client got %d bytes of %d: %v", len(got), len(answer), err)
			}
			// Either is told. After an end of data it is EPIPE (Linux, tcp_reset).
			if told := errors.Join(err, <-written); !errors.Is(told, unix.ECONNRESET) && !errors.Is(told, unix.EPIPE) {
				t.Errorf("then the connection ended with %v, not with a reset", told)
			}
		})
	}
}

// The kernel tells of a reset once. If a write is told, the read after it gets
// what looks like an end of data, and the answer that was cut off looks complete.
func TestResetIsNoEnd(t *testing.T) {
	checkNothingLeft(t)
	for name, test := range map[string]struct {
		peer func(*net.TCPConn) // then closed
		here func(*end) error
		want error
	}{
		"reset":         {func(c *net.TCPConn) { c.SetLinger(0) }, func(*end) error { return nil }, unix.ECONNRESET},
		"end":           {func(c *net.TCPConn) {}, func(*end) error { return nil }, nil},
		"end of either": {func(c *net.TCPConn) {}, (*end).endData, nil},
	} {
		t.Run(name, func(t *testing.T) {
			connected, closed := make(chan struct{}), make(chan struct{})
			conn := dial(t, listen(t, func(conn *net.TCPConn) {
				<-connected
				test.peer(conn)
				conn.Close()
				close(closed)
			}))
			close(connected)
			<-closed
			e := &end{Conn: conn}
			if err := test.here(e); err != nil {
				t.Fatal(err)
			}
			if test.want != nil {
				await(t, "the reset", func() bool { state, err := tcpState(conn); return err != nil || state == unix.BPF_TCP_CLOSE })
				if _, err := conn.Write([]byte("x")); !errors.Is(err, unix.ECONNRESET) {
					t.Fatalf("the write was not told of the reset: %v", err)
				}
			}
			if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("the read does not look like an end: %v", err)
			}
			if err := e.checkEnd(); !errors.Is(err, test.want) {
				t.Errorf("taken for %v, not for %v", err, test.want)
			}
		})
	}
}

func smallReceiveBuffer(_, _ string, raw syscall.RawConn) (failure error) {
	err := raw.Control(func(fd uintptr) { failure = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	return errors.Join(err, failure)
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A server that does not read stops the client, and the proxy holds little.
func TestSlowReaderStopsSender(t *testing.T) {
	checkNothingLeft(t)
	read, got := make(chan struct{}), make(chan string, 1)
	server := listen(t, func(conn *net.TCPConn) {
		<-read
		got <- digest(t, conn)
	})
	p := proxyTo(t, To(server), Options{})
	client := dial(t, p.Addr())
	before := heap()
	const most = 256 << 20
	sent := 0
	chunk := make([]byte, 1<<20)
	for blocked := false; !blocked; {
		client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := client.Write(chunk)
		sent += n
		blocked = n == 0
		switch {
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			t.Fatal(err)
		case sent > most:
			t.Fatalf("the proxy took %d bytes from a client, which nobody reads", sent)
		}
	}
	if grown := heap() - before; grown > 2*largeBuffer {
		t.Errorf("the proxy holds %d bytes of the %d sent", grown, sent)
	}
	close(read)
	client.SetWriteDeadline(time.Now().Add(limit))
	client.CloseWrite()
	if got, want := <-got, digest(t, io.LimitReader(zeros{}, int64(sent))); got != want {
		t.Errorf("the server got %s, not %s", got, want)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func heap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // empties sync.Pool
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	checkNothingLeft(t)
	const connections = 200
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	server := listen(t, func(conn *net.TCPConn) {
		conn.Write([]byte("x"))
		<-done
	})
	p := proxyTo(t, To(server), Options{})
	before := heap()
	for range connections {
		if _, err := dial(t, p.Addr()).Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if each := (heap() - before) / connections; each > smallBuffer/4 {
		t.Errorf("each of %d idle connections costs %d bytes", connections, each)
	}
}

func TestLimitOfConnections(t *testing.T) {
	checkNothingLeft(t)
	var log log
	p := proxyTo(t, To(listen(t, echo)), Options{MaxFlows: 2, Log: log.logger()})
	clients := make([]*net.TCPConn, 4)
	for i := range clients {
		clients[i] = dial(t, p.Addr()) // the backlog takes it
	}
	checkEcho(t, clients[0])
	checkEcho(t, clients[1])
	clients[2].Write([]byte("word"))
	clients[2].SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := clients[2].Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the third of 2 connections is served: %d bytes, %v", n, err)
	}
	if got := p.Counters().Open; got != 2 {
		t.Errorf("%d connections are open, not 2", got)
	}
	clients[2].SetReadDeadline(time.Now().Add(limit))
	clients[0].Close()
	if _, err := io.ReadFull(clients[2], make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	clients[1].Close()
	checkEcho(t, clients[3])
	if got := log.count("new ones wait"); got != 1 {
		t.Errorf("it was logged %d times in a minute", got)
	}
}

// failingListener fails a few times.
type failingListener struct {
	net.Listener
	failures int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: unix.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptErrorsPass(t *testing.T) {
	checkNothingLeft(t)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log log
	p := serveTCP(&failingListener{listener, 4}, To(listen(t, echo)), Options{Log: log.logger()})
	t.Cleanup(func() { closeNow(t, p) })
	checkEcho(t, dial(t, p.Addr()))
	if got := log.count("too many open files"); got != 1 {
		t.Errorf("it was logged %d times in a minute", got)
	}
}

func TestNextDestinationIsDialed(t *testing.T) {
	checkNothingLeft(t)
	to := []netip.AddrPort{free(t), listen(t, echo)}
	p := proxyTo(t, func(Flow) ([]netip.AddrPort, error) { return to, nil }, Options{})
	checkEcho(t, dial(t, p.Addr()))
}

func TestDestinationsAreHeldToTheirPromise(t *testing.T) {
	checkNothingLeft(t)
	for name, to := range map[string]Destinations{
		"error":     func(Flow) ([]netip.AddrPort, error) { return nil, errors.ErrUnsupported },
		"none":      func(Flow) ([]netip.AddrPort, error) { return nil, nil },
		"the proxy": func(f Flow) ([]netip.AddrPort, error) { return []netip.AddrPort{f.Local}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := proxyTo(t, to, Options{})
			checkReset(t, hereDialer, p.Addr())
			await(t, "the end of the connection", func() bool { return p.Counters().Open == 0 })
			if got, want := p.Counters(), (Counters{Total: 1, Refused: 1}); got != want {
				t.Errorf("counters are %+v, not %+v", got, want)
			}
		})
	}
}

// withoutCloseWrite is a connection of a Dialer that can only be closed as a whole.
type withoutCloseWrite struct{ net.Conn }

func TestConnectionWithoutHalfClose(t *testing.T) {
	checkNothingLeft(t)
	server := listen(t, echo)
	p := proxyTo(t, To(server), Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := hereDialer(ctx, network, address)
		return withoutCloseWrite{conn}, err
	}})
	client := dial(t, p.Addr())
	checkEcho(t, client)
	client.CloseWrite()
	await(t, "the end of the connection", func() bool { return p.Counters().Open == 0 })
}

func TestServerResetIsPassedOn(t *testing.T) {
	checkNothingLeft(t)
	p := proxyTo(t, To(listen(t, func(conn *net.TCPConn) { conn.SetLinger(0) })), Options{})
	checkReset(t, hereDialer, p.Addr())
}

func TestClientResetIsPassedOn(t *testing.T) {
	checkNothingLeft(t)
	seen := make(chan error, 1)
	p := proxyTo(t, To(listen(t, func(conn *net.TCPConn) {
		_, err := io.Copy(struct{ io.Writer }{conn}, conn)
		seen <- err
	})), Options{})
	client := dial(t, p.Addr())
	checkEcho(t, client)
	client.SetLinger(0)
	client.Close()
	if err := <-seen; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server saw %v, not a reset", err)
	}
}

func TestCloseWaitsForConnections(t *testing.T) {
	checkNothingLeft(t)
	p := proxyTo(t, To(listen(t, echo)), Options{})
	client := dial(t, p.Addr())
	checkEcho(t, client)
	closed := make(chan error, 1)
	go func() { closed <- p.Close(t.Context()) }()
	await(t, "the end of the listener", func() bool {
		conn, err := net.Dial("tcp4", p.Addr().String())
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
	checkEcho(t, client)
	select {
	case err := <-closed:
		t.Fatalf("Close has not waited: %v", err)
	default:
	}
	client.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// All that Close could wait for: a connection at work, one that is dialed, one
// that waits in the backlog.
func TestCloseResetsWhenItsContextEnds(t *testing.T) {
	checkNothingLeft(t)
	server := listen(t, echo)
	dialing := make(chan struct{})
	first := true
	p := proxyTo(t, To(server), Options{MaxFlows: 2, DialTimeout: time.Hour, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if first {
			first = false
			return hereDialer(ctx, network, address)
		}
		close(dialing)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	working := dial(t, p.Addr())
	checkEcho(t, working)
	clients := []*net.TCPConn{working, dial(t, p.Addr()), dial(t, p.Addr())}
	<-dialing
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("that was long enough"))
	err := p.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), "2 connections") || !strings.Contains(err.Error(), "that was long enough") {
		t.Errorf("Close says %v", err)
	}
	for i, client := range clients {
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("connection %d has ended with %v, not with a reset", i, err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Errorf("Close once more: %v", err)
	}
}

func TestEndedConnectionIsClosed(t *testing.T) {
	p := proxyTo(t, To(listen(t, echo)), Options{})
	before := openFiles(t)
	for range 3 {
		client := dial(t, p.Addr())
		checkEcho(t, client)
		client.Close()
	}
	await(t, "the end of all sockets", func() bool { return openFiles(t) <= before })
}

func TestCounters(t *testing.T) {
	checkNothingLeft(t)
	p := proxyTo(t, To(listen(t, echo)), Options{})
	clients := []*net.TCPConn{dial(t, p.Addr()), dial(t, p.Addr())}
	for _, client := range clients {
		checkEcho(t, client)
	}
	want := Counters{Open: 2, Total: 2, ToDestination: 8, ToClient: 8}
	await(t, "the bytes to be counted", func() bool { return p.Counters() == want })
	clients[0].Close()
	want.Open = 1
	await(t, "the end to be counted", func() bool { return p.Counters() == want })
}
