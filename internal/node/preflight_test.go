package node

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// The table is /proc/net/tcp of a network namespace with two listeners and a
// connection to one of them.
func TestSocketsAt(t *testing.T) {
	for port, want := range map[int][]string{6443: {"680996"}, 10259: {"680995"}, 57428: nil, 443: nil} {
		table, err := os.Open("testdata/tcp")
		if err != nil {
			t.Fatal(err)
		}
		if got := socketsAt(table, waiting["tcp"], port); !slices.Equal(got, want) {
			t.Errorf("on port %d listen %v, not %v", port, got, want)
		}
		table.Close()
	}
}

// A port that is held for a moment is free; one that is held on is not.
func TestPortFree(t *testing.T) { synctest.Test(t, portHeld) }

func portHeld(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := held.Addr().String()
	if err := portFree("tcp", address); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is held: %v", err)
	}
	time.AfterFunc(passing/4, func() { held.Close() })
	if err := portFree("tcp", address); err != nil {
		t.Errorf("a port that was held for a moment: %v", err)
	}
}

func TestPublications(t *testing.T) {
	given := Options{Publish: []string{"8080:30080", "127.0.0.1:53:30053/udp", "53:30053/tcp", "6443:30443/udp"}}
	all, err := given.publications()
	if err != nil {
		t.Fatal(err)
	}
	want := []publication{
		{"8080:30080", corev1.ProtocolTCP, netip.MustParseAddrPort("0.0.0.0:8080"), 30080},
		{"127.0.0.1:53:30053/udp", corev1.ProtocolUDP, netip.MustParseAddrPort("127.0.0.1:53"), 30053},
		{"53:30053/tcp", corev1.ProtocolTCP, netip.MustParseAddrPort("0.0.0.0:53"), 30053},
		{"6443:30443/udp", corev1.ProtocolUDP, netip.MustParseAddrPort("0.0.0.0:6443"), 30443},
	}
	if !slices.Equal(all, want) {
		t.Errorf("got %v, want %v", all, want)
	}
	for text, why := range map[string]string{
		"8080": "not two ports", "a:8080:30080": "not an IPv4 address", "0:30080": "not a port", "8080:30080/sctp": "neither tcp nor udp",
		"30080:30080": "already", "6443:30080": "already", "8080:30080/": "neither tcp nor udp",
	} {
		if _, err := (Options{Publish: []string{text}}).publications(); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("--publish %s gives %v, and should say %q", text, err, why)
		}
	}
	twice := Options{Publish: []string{"53:30053/udp", "53:30054/udp"}}
	if _, err := twice.publications(); err == nil || !strings.Contains(err.Error(), "the same port") {
		t.Errorf("one port twice gives %v", err)
	}
}
