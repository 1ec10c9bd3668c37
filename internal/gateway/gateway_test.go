package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inOwnNetwork calls f on a thread in a network namespace of its own, with loopback up.
func inOwnNetwork(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and the namespace with it
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err == nil {
				err = netlink.LinkSetUp(lo)
			}
			if err != nil {
				return err
			}
			return f()
		}()
	}()
	err := <-result
	if errors.Is(err, os.ErrNotExist) { // no /dev/net/tun
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// network is what is outside: every address answers with what it was asked, and with
// its own name, except for port 9.
type network struct {
	mu     sync.Mutex
	dialed []string
}

func (n *network) dial(_ context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialed = append(n.dialed, network+" "+address)
	if netip.MustParseAddrPort(address).Port() == 9 {
		return nil, unix.ECONNREFUSED
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		data := make([]byte, 1<<16)
		for {
			n, err := there.Read(data)
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(there, "%s from %s %s", data[:n], network, address); err != nil {
				return
			}
		}
	}()
	return here, nil
}

func TestFlows(t *testing.T) {
	outside := &network{}
	resolver := netip.MustParseAddrPort("127.0.0.53:53")
	inOwnNetwork(t, func() error {
		if err := Open(Options{Dial: outside.dial, Resolver: resolver, Log: slog.New(slog.DiscardHandler)}); err != nil {
			return err
		}
		for _, c := range []struct{ network, address, reaches string }{
			{"tcp", "203.0.113.5:80", "203.0.113.5:80"},
			{"udp", "203.0.113.5:4000", "203.0.113.5:4000"},
			{"tcp", Address.String() + ":53", resolver.String()},
			{"udp", Address.String() + ":53", resolver.String()},
		} {
			answer, err := ask(c.network, c.address)
			if want := "hello from " + c.network + " " + c.reaches; err != nil || answer != want {
				t.Errorf("%s %s answers %q, %v", c.network, c.address, answer, err)
			}
		}
		for _, address := range []string{"203.0.113.5:9", Address.String() + ":80"} {
			if answer, err := ask("tcp", address); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s, where nobody listens, answers %q, %v", address, answer, err)
			}
		}
		return nil
	})
	outside.mu.Lock()
	defer outside.mu.Unlock()
	if slices.Contains(outside.dialed, "tcp "+Address.String()+":80") {
		t.Error("a port of the gateway itself was dialed outside")
	}
}

// A pod that sends from more and more ports does not take all memory.
func TestSoManyFlows(t *testing.T) {
	outside := &network{}
	const most = 4
	inOwnNetwork(t, func() error {
		if err := Open(Options{Dial: outside.dial, Log: slog.New(slog.DiscardHandler), MaxUDPFlows: most}); err != nil {
			return err
		}
		for i := range 3 * most {
			conn, err := net.Dial("udp", "203.0.113.5:4000")
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if i >= most {
				_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
			}
			_, _ = conn.Write([]byte("hello"))
			if _, err := conn.Read(make([]byte, 100)); (err == nil) != (i < most) {
				t.Errorf("the answer of flow %d: %v", i, err)
			}
		}
		if answer, err := ask("tcp", "203.0.113.5:80"); err != nil {
			t.Errorf("TCP answers %q, %v", answer, err)
		}
		return nil
	})
	outside.mu.Lock()
	defer outside.mu.Unlock()
	if dialed := len(slices.DeleteFunc(outside.dialed, func(d string) bool { return strings.HasPrefix(d, "tcp ") })); dialed != most {
		t.Errorf("%d flows were dialed", dialed)
	}
}

// Bulk arrives whole: packets are as large as the device allows.
func TestBulk(t *testing.T) {
	const size = 32 << 20
	received := make(chan int64, 1)
	inOwnNetwork(t, func() error {
		err := Open(Options{Log: slog.New(slog.DiscardHandler), Dial: func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				n, _ := io.Copy(io.Discard, there)
				received <- n
			}()
			return here, nil
		}})
		if err != nil {
			return err
		}
		conn, err := net.Dial("tcp", "203.0.113.5:80")
		if err != nil {
			return err
		}
		_, err = conn.Write(make([]byte, size))
		return errors.Join(err, conn.Close())
	})
	select {
	case n := <-received:
		if n != size {
			t.Errorf("%d bytes of %d came", n, size)
		}
	case <-time.After(30 * time.Second):
		t.Error("the end of the data did not come")
	}
}

func ask(network, address string) (string, error) {
	conn, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return "", err
	}
	data := make([]byte, 100)
	n, err := conn.Read(data)
	return string(data[:n]), err
}
