package nat

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Backend is a way to give rules to the kernel, in the network namespace of the
// calling thread.
type Backend interface {
	// String is the back end's name.
	String() string
	// Apply makes the rules the only ones of this package, in their order and in
	// front of those of others, and reads them back. If they are there already,
	// nothing is written.
	Apply(rules []Rule) error
	// Verify returns nil if the rules are there as Apply would leave them, and else
	// an error that says what is not, for instance after somebody has flushed the
	// table.
	Verify(rules []Rule) error
	// Remove takes away what Apply made, with whatever rules that was. That nothing
	// is there, or that the kernel has no such back end, is no error.
	Remove() error
}

// Backends are the back ends in the order of preference. A kernel with both shows
// the rules of ip_tables only to programs that ask for them by the name legacy.
func Backends() []Backend { return []Backend{Nftables{}, Legacy{}} }

// Supports returns nil if the back end takes the rules and shows them again. It
// tries in a network namespace of its own and, because a kernel says no more than
// "invalid argument" to a whole table, names the rules that are refused alone.
func Supports(backend Backend, rules []Rule) error {
	return inNetwork(func() error {
		all := backend.Apply(rules)
		if all == nil {
			return nil
		}
		var refused []error
		for _, rule := range rules {
			if err := backend.Apply([]Rule{rule}); err != nil {
				refused = append(refused, fmt.Errorf("%s: %w", rule, err))
			}
		}
		if len(refused) == 0 || len(refused) == len(rules) {
			return all
		}
		return errors.Join(refused...)
	})
}

// inNetwork calls f in a network namespace that has loopback only. It ends with the
// thread, which nobody else gets.
func inNetwork(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}
