package svcproxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit is how long anything in these tests may take that does happen.
const limit = 20 * time.Second

// await waits for a condition.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %v", what, limit)
		}
	}
}

// listen is a server on loopback that calls serve for each connection.
func listen(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, listener, serve)
}

func serveOn(t testing.TB, listener net.Listener, serve func(*net.TCPConn)) netip.AddrPort {
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(2 * limit)) // not what ends a test
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return addrPort(listener.Addr())
}

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// proxyTo is a proxy on loopback.
func proxyTo(t testing.TB, to Destinations, options Options) *TCP {
	t.Helper()
	p, err := ListenTCP(loopback, to, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, p) })
	return p
}

func closeNow(t testing.TB, p interface{ Close(context.Context) error }) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Close(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func dial(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", to.String(), limit)
	if err != nil {
		t.Fatal(err)
	}
	return prepare(t, conn)
}

func prepare(t testing.TB, conn net.Conn) *net.TCPConn {
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * limit))
	return conn.(*net.TCPConn)
}

// checkNothingLeft fails the test unless, at its end, there are no more goroutines
// and file descriptors than now.
func checkNothingLeft(t *testing.T) {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Cleanup(func() {
		for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
			g, f := runtime.NumGoroutine(), openFiles(t)
			if g <= goroutines && f <= files && len(largeSlots) == 0 {
				return
			}
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				t.Fatalf("%d goroutines and %d files are left of %d and %d, and %d large buffers\n%s", g, f, goroutines, files, len(largeSlots), stacks[:runtime.Stack(stacks, true)])
			}
		}
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// random is n bytes that are the same for the same seed.
func random(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

func digest(t testing.TB, r io.Reader) string {
	t.Helper()
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	if err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
	return fmt.Sprintf("%d bytes %x", n, hash.Sum(nil))
}

const transfer = 50 << 20 // bytes

// serveTransfer sends 50 MiB, at the same time reads to the end, and then tells
// the digest of it.
func serveTransfer(t testing.TB) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		got := make(chan string)
		go func() { got <- digest(t, conn) }()
		io.Copy(conn, random('s', transfer))
		fmt.Fprintf(conn, "%-90s", <-got)
	}
}

// checkTransfer is the client of serveTransfer. Its end of data (half-close) is
// what the server's last words wait for.
func checkTransfer(t testing.TB, conn *net.TCPConn) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, random('c', transfer))
		sent <- errors.Join(err, conn.CloseWrite())
	}()
	if got, want := digest(t, io.LimitReader(conn, transfer)), digest(t, random('s', transfer)); got != want {
		t.Errorf("the client got %s, not %s", got, want)
	}
	words, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	if got, want := strings.TrimSpace(string(words)), digest(t, random('c', transfer)); got != want {
		t.Errorf("the server got %q, not %s", got, want)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// checkReset dials and fails the test unless the connection ends with a reset, as
// which a very early one is seen in connect already.
func checkReset(t testing.TB, dial Dialer, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	conn, err := dial(ctx, "tcp4", to.String())
	var data []byte
	if err == nil {
		data, err = io.ReadAll(prepare(t, conn))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the connection to %v ended with %q and %v, not with a reset", to, data, err)
	}
}

var hereDialer = new(net.Dialer).DialContext
