package outside

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// beside is the local address outside, as who serves there says.
var beside = netip.MustParseAddr("192.0.2.2")

// use serves on one end of a pair, in this process, and uses the other.
func use(t *testing.T) (*Network, net.Conn) {
	t.Helper()
	here, there, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	go Serve(here, func(_, _ string, err error) error { return err }, func() []netip.Addr { return []netip.Addr{beside} })
	n, err := Use(there)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		here.Close()
		n.conn.Close()
	})
	return n, here
}

func TestSocketsArePassed(t *testing.T) {
	n, _ := use(t)
	listener, err := n.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		data, _ := io.ReadAll(conn) // until the end of one direction
		_, _ = conn.Write(append(data, " heard"...))
	}()
	conn, err := n.Dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("a connection is %T", conn)
	}
	_, _ = tcp.Write([]byte("hello"))
	_ = tcp.CloseWrite()
	_ = tcp.SetReadDeadline(time.Now().Add(10 * time.Second))
	if data, err := io.ReadAll(tcp); err != nil || string(data) != "hello heard" {
		t.Errorf("the answer is %q, %v", data, err)
	}
}

func TestPacketSocketsArePassed(t *testing.T) {
	n, _ := use(t)
	addresses, err := n.Addresses(t.Context())
	if err != nil || !slices.Equal(addresses, []netip.Addr{beside}) {
		t.Fatalf("the addresses outside are %v, %v", addresses, err)
	}
	server, err := n.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, ok := server.(*net.UDPConn); !ok {
		t.Fatalf("a listener for packets is %T", server)
	}
	client, err := n.Dial(t.Context(), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, _ = client.Write([]byte("hello"))
	_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
	heard := make([]byte, 16)
	if length, _, err := server.ReadFrom(heard); err != nil || string(heard[:length]) != "hello" {
		t.Errorf("there came %q, %v", heard[:length], err)
	}
}

func TestRefusals(t *testing.T) {
	n, _ := use(t)
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if l, err := n.Listen(t.Context(), "tcp4", taken.Addr().String()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken gives %v, %v", l, err)
	}
	address := taken.Addr().String()
	taken.Close()
	if c, err := n.Dial(t.Context(), "tcp", address); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a port where nobody listens gives %v, %v", c, err)
	}
	if _, _, err := n.ask(t.Context(), request{Do: "sing"}); err == nil || !strings.Contains(err.Error(), "sing") {
		t.Errorf("an unknown request gives %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := n.Dial(ctx, "tcp", address); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended gives %v, %v", c, err)
	}
}

// Who is inside notices the end of who is outside, and the other way round.
func TestEnds(t *testing.T) {
	n, here := use(t)
	here.Close()
	select {
	case <-n.Gone():
	case <-time.After(10 * time.Second):
		t.Error("the end of who is outside is not noticed")
	}
	serving, there, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		Serve(serving, func(_, _ string, err error) error { return err }, nil)
		close(served)
	}()
	there.Close()
	select {
	case <-served:
	case <-time.After(10 * time.Second):
		t.Error("the end of who is inside is not noticed")
	}
}
