package nat

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Legacy is the back end for ip_tables, which gVisor has: a raw socket that reads
// and writes the table nat as a whole.
//
// Programs that change the table at the same time are kept out by the lock of
// iptables(8), /run/xtables.lock, if they heed it. Of others Linux tells only if
// the number of entries has changed meanwhile; gVisor does not tell.
type Legacy struct{}

func (Legacy) String() string { return "legacy iptables" }

// Apply implements Backend. In gVisor the whole table may have 32 KiB, in January
// 2026 still 8 KiB, where 30 rules fit (pkg/sentry/syscalls/linux/sys_socket.go,
// maxOptLen); more are an invalid argument.
func (b Legacy) Apply(rules []Rule) error {
	sorted, err := byChain(rules)
	if err != nil {
		return err
	}
	err = edit(func(t *table) error {
		for _, c := range chains {
			if len(sorted[c]) == 0 {
				err = t.uninstall(c)
			} else {
				err = t.install(c, sorted[c])
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, func(t *table) error { return verify(t, sorted) })
	if err != nil {
		return fmt.Errorf("nat: apply rules with %s: %w", b, err)
	}
	return nil
}

// Verify implements Backend.
func (b Legacy) Verify(rules []Rule) error {
	sorted, err := byChain(rules)
	if err != nil {
		return err
	}
	socket, err := openSocket()
	if err == nil {
		defer socket.close()
		var t *table
		if t, err = socket.readTable(); err == nil {
			err = verify(t, sorted)
		}
	}
	if err != nil {
		return fmt.Errorf("nat: verify rules with %s: %w", b, err)
	}
	return nil
}

// Remove implements Backend.
func (b Legacy) Remove() error {
	if unused() {
		return nil
	}
	err := edit(func(t *table) error {
		for _, c := range chains {
			if err := t.uninstall(c); err != nil {
				return err
			}
		}
		return nil
	}, func(t *table) error { return verify(t, nil) })
	// A kernel without ip_tables does not know the option, and one without its table
	// nat not the name.
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nat: remove rules with %s: %w", b, err)
	}
	return nil
}

// unused reports whether nobody has used the table nat of this network namespace
// yet: reading it would make it, with its hooks in the way of every packet. gVisor
// has no such file, and always a table.
func unused() bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && !slices.Contains(strings.Fields(string(names)), "nat")
}

func verify(t *table, sorted map[Chain][]Rule) error {
	for _, c := range chains {
		if err := t.verify(c, sorted[c]); err != nil {
			return err
		}
	}
	return nil
}

// attempts is how often a table is read again because another program has changed
// it between reading and writing.
const attempts = 20

// edit reads the table, changes it, writes it and reads it again, unless it is as
// it should be from the start.
func edit(change, verify func(*table) error) error {
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	socket, err := openSocket()
	if err != nil {
		return err
	}
	defer socket.close()
	for range attempts {
		var t *table
		if t, err = socket.readTable(); err != nil {
			return err
		}
		if verify(t) == nil {
			return nil
		}
		if err = change(t); err != nil {
			return err
		}
		if err = socket.writeTable(t); err == nil {
			if t, err = socket.readTable(); err == nil {
				err = verify(t)
			}
			return err
		}
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return err
}
