package node

import (
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
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
	if err := portFree(address); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is held: %v", err)
	}
	time.AfterFunc(passing/4, func() { held.Close() })
	if err := portFree(address); err != nil {
		t.Errorf("a port that was held for a moment: %v", err)
	}
}
