package loopback

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// listen returns a listener on a port of its own, whose server says where a request
// comes from.
func listen(t *testing.T) (*Listener, <-chan error) {
	t.Helper()
	network, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(network)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			t.Errorf("the server cannot tell where a request comes from: %v", err)
		}
		_, _ = io.WriteString(w, host)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return l, served
}

// get asks by a dialer of its own.
func get(l *Listener, dial func(context.Context, string, string) (net.Conn, error)) (string, error) {
	transport := &http.Transport{DialContext: dial}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 10 * time.Second}
	answer, err := client.Get("http://" + l.Addr().String())
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

func TestBothWaysReachTheServer(t *testing.T) {
	l, _ := listen(t)
	for range 3 {
		if host, err := get(l, l.DialContext); host != "::1" || err != nil {
			t.Errorf("from within the process: the server sees %q, %v", host, err)
		}
		if host, err := get(l, new(net.Dialer).DialContext); host != "127.0.0.1" || err != nil {
			t.Errorf("from the network: the server sees %q, %v", host, err)
		}
	}
}

// The address plays no part, and a server's deadlines hold.
func TestDialWhateverTheAddress(t *testing.T) {
	network, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(network)
	defer l.Close()
	client, err := l.DialContext(t.Context(), "tcp", "192.0.2.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := server.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a read after its deadline: %v", err)
	}
}

// A connection is used again, as one by a socket is: by HTTP/1.1 and TLS too, which webhooks
// speak, and where the server interrupts a read of its own after each request.
func TestConnectionsAreKept(t *testing.T) {
	network, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(network)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	}))
	server.Listener.Close()
	server.Listener = l
	server.StartTLS()
	defer server.Close()
	dialled := 0
	client := server.Client()
	transport := client.Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled++
		return l.DialContext(ctx, network, address)
	}
	for range 5 {
		answer, err := client.Post(server.URL, "text/plain", strings.NewReader("echo"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if string(body) != "echo" || err != nil || answer.ProtoMajor != 1 {
			t.Fatalf("the answer is %q by %s, %v", body, answer.Proto, err)
		}
		time.Sleep(10 * time.Millisecond) // as long as the server may need to close it
	}
	if dialled != 1 {
		t.Errorf("five requests made %d connections", dialled)
	}
}

func TestCloseEndsBoth(t *testing.T) {
	l, served := listen(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-served:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("the server ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server still accepts")
	}
	for _, dial := range []func(context.Context, string, string) (net.Conn, error){l.DialContext, new(net.Dialer).DialContext} {
		if c, err := dial(t.Context(), "tcp", l.Addr().String()); err == nil {
			c.Close()
			t.Error("who dials a closed listener gets a connection")
		}
	}
	_ = l.Close() // a second time does no harm
}
