package node

import (
	"os"
	"slices"
	"testing"
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
