package gvisor

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// running are the sandboxes that have to be deleted if the tests are interrupted.
var running struct {
	sync.Mutex
	sandboxes []*Sandbox
}

// idPrefix begins the names of the sandboxes of this process.
func idPrefix() string { return fmt.Sprintf("k3s9p-%d-", os.Getpid()) }

// Main is what TestMain of a scenario calls: it deletes sandboxes also when the
// tests are interrupted, and fails if something of them is left.
func Main(m *testing.M) {
	signal.Ignore(unix.SIGPIPE) // go test may have ended before the clean-up has
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-signals
		running.Lock() // for good: no further sandbox starts
		for _, s := range running.sandboxes {
			if err := s.remove(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			_ = os.RemoveAll(filepath.Dir(s.dir)) // t.TempDir makes a folder in a folder
		}
		os.Exit(130)
	}()
	code := m.Run()
	if left := processes(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "processes of sandboxes are left:\n%s\n", strings.Join(left, "\n"))
		code = 1
	}
	os.Exit(code)
}

// processes lists the command lines that name a sandbox of this process.
func processes() []string {
	var found []string
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		line, err := os.ReadFile(name)
		if err == nil && bytes.Contains(line, []byte(idPrefix())) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}
