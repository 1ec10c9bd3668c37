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
// and writes a table as a whole.
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
	for _, t := range tables {
		if err := apply(t.name, t.chains, sorted); err != nil {
			return fmt.Errorf("nat: apply rules with %s: %w", b, err)
		}
	}
	return nil
}

func apply(name string, chains []Chain, sorted map[Chain][]Rule) error {
	if !slices.ContainsFunc(chains, func(c Chain) bool { return len(sorted[c]) > 0 }) {
		return remove(name, chains)
	}
	return edit(name, func(t *table) error {
		for _, c := range chains {
			change := func() error { return t.install(c, sorted[c]) }
			if len(sorted[c]) == 0 {
				change = func() error { return t.uninstall(c) }
			}
			if err := change(); err != nil {
				return err
			}
		}
		return nil
	}, func(t *table) error { return verify(t, chains, sorted) })
}

// Verify implements Backend.
func (b Legacy) Verify(rules []Rule) error {
	sorted, err := byChain(rules)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := check(t.name, t.chains, sorted); err != nil {
			return fmt.Errorf("nat: verify rules with %s: %w", b, err)
		}
	}
	return nil
}

// check verifies a table. One that is not there, or that nobody has used, is as it should
// be where it is to have no rules of ours.
func check(name string, chains []Chain, sorted map[Chain][]Rule) error {
	none := !slices.ContainsFunc(chains, func(c Chain) bool { return len(sorted[c]) > 0 })
	if none && unused(name) {
		return nil
	}
	socket, err := openSocket(name)
	if err != nil {
		return err
	}
	defer socket.close()
	t, err := socket.readTable()
	if none && absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return verify(t, chains, sorted)
}

// Remove implements Backend.
func (b Legacy) Remove() error {
	for _, t := range tables {
		if err := remove(t.name, t.chains); err != nil {
			return fmt.Errorf("nat: remove rules with %s: %w", b, err)
		}
	}
	return nil
}

func remove(name string, chains []Chain) error {
	if unused(name) {
		return nil
	}
	err := edit(name, func(t *table) error {
		for _, c := range chains {
			if err := t.uninstall(c); err != nil {
				return err
			}
		}
		return nil
	}, func(t *table) error { return verify(t, chains, nil) })
	if absent(err) {
		return nil
	}
	return err
}

// absent says that there is no such table: a kernel without ip_tables does not know the
// option, and one without the table not the name.
func absent(err error) bool { return errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) }

// unused reports whether nobody has used a table of this network namespace yet: reading
// it would make it, with its hooks in the way of every packet. gVisor has no such file,
// and always a table.
func unused(name string) bool {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	return err == nil && !slices.Contains(strings.Fields(string(names)), name)
}

func verify(t *table, chains []Chain, sorted map[Chain][]Rule) error {
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

// edit reads a table, changes it, writes it and reads it again, unless it is as it should
// be from the start.
func edit(name string, change, verify func(*table) error) error {
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	socket, err := openSocket(name)
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
