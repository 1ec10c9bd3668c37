package svcproxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// BenchmarkRelay compares downloads through the proxy with direct ones, in turns
// within the same run, because other work on the machine slows both.
func BenchmarkRelay(b *testing.B) {
	b.Run("loopback", func(b *testing.B) {
		server := listen(b, serveDownload)
		p := proxyTo(b, To(server), Options{})
		compare(b, func() *net.TCPConn { return dial(b, p.Addr()) }, func() *net.TCPConn { return dial(b, server) })
	})
	b.Run("redirected", func(b *testing.B) {
		n := newNetwork(b, gateway, Policy{}, Options{})
		server := n.listenOutside(b, serveDownload)
		compare(b, func() *net.TCPConn { return n.pod.dial(b, server) }, func() *net.TCPConn { return n.router.dial(b, server) })
	})
}

// BenchmarkSandbox runs in a gVisor sandbox, and does to its network what a node
// does. It is given the address of a server outside (K3S9P_OUTSIDE), which is this
// program too (K3S9P_SERVE).
func BenchmarkSandbox(b *testing.B) {
	outside := os.Getenv("K3S9P_OUTSIDE")
	if outside == "" {
		b.Skip("K3S9P_OUTSIDE is not set: this would change the machine's own network")
	}
	server := netip.MustParseAddrPort(outside)
	node, pod := thisNamespace(b), newNamespace(b)
	makeBridge(b, node, pod)
	p, err := ListenEgress(netip.AddrPortFrom(gateway, 0), Policy{}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { closeNow(b, p) })
	redirect(b, node, p.Addr().Port())
	b.Run("download", func(b *testing.B) {
		compare(b, func() *net.TCPConn { return pod.dial(b, server) }, func() *net.TCPConn { return node.dial(b, server) })
	})
}

const download = 256 << 20 // bytes

func serveDownload(conn *net.TCPConn) {
	chunk := make([]byte, 256<<10)
	for sent := 0; sent < download; sent += len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			return
		}
	}
}

// compare reports the throughput through the proxy, in MB/s, and its share of the
// direct one.
func compare(b *testing.B, through, direct func() *net.TCPConn) {
	var proxied, alone time.Duration
	for b.Loop() {
		proxied += downloadTime(b, through())
		alone += downloadTime(b, direct())
	}
	b.ReportMetric(float64(b.N)*download/1e6/proxied.Seconds(), "MB/s")
	b.ReportMetric(alone.Seconds()/proxied.Seconds(), "ratio")
}

func downloadTime(b *testing.B, conn *net.TCPConn) time.Duration {
	defer conn.Close()
	start := time.Now()
	buffer := make([]byte, 256<<10)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, buffer)
	if err != nil || n != download {
		b.Fatalf("got %d bytes of %d: %v", n, download, err)
	}
	return time.Since(start)
}

// BenchmarkConnections compares the time of one short connection.
func BenchmarkConnections(b *testing.B) {
	server := listen(b, echo)
	p := proxyTo(b, To(server), Options{})
	once := func(to netip.AddrPort) time.Duration {
		start := time.Now()
		conn := dial(b, to)
		checkEcho(b, conn)
		conn.Close()
		return time.Since(start)
	}
	var proxied, alone time.Duration
	for b.Loop() {
		proxied += once(p.Addr())
		alone += once(server)
	}
	b.ReportMetric(float64(proxied.Microseconds())/float64(b.N), "µs/connection")
	b.ReportMetric(alone.Seconds()/proxied.Seconds(), "ratio")
}

// TestMain serves downloads at K3S9P_SERVE, if that is set, until it is killed.
func TestMain(m *testing.M) {
	address := os.Getenv("K3S9P_SERVE")
	if address == "" {
		os.Exit(m.Run())
	}
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			defer conn.Close()
			serveDownload(conn.(*net.TCPConn))
		}()
	}
}
