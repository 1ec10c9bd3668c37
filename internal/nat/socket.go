package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of a raw IPv4 socket at level IPPROTO_IP (include/uapi/linux/
// netfilter_ipv4/ip_tables.h).
const (
	setReplace     = 64 // IPT_SO_SET_REPLACE
	setAddCounters = 65 // IPT_SO_SET_ADD_COUNTERS
	getInfo        = 64 // IPT_SO_GET_INFO
	getEntries     = 65 // IPT_SO_GET_ENTRIES
)

// Sizes and offsets in bytes of their structures where a pointer has 8.
const (
	tableNameLength = 32 // XT_TABLE_MAXNAMELEN

	infoSize    = 84 // struct ipt_getinfo
	infoHooks   = tableNameLength
	infoEntry   = infoHooks + 4
	infoUnder   = infoEntry + 4*hooks
	infoEntries = infoUnder + 4*hooks
	infoLength  = infoEntries + 4

	getEntriesSize = 40 // struct ipt_get_entries before its entries
	countersHeader = 40 // struct xt_counters_info before its counters
	countersSize   = 16 // struct xt_counters: packets, bytes

	replaceSize        = 96 // struct ipt_replace before its entries
	replaceEntries     = tableNameLength + 4
	replaceLength      = replaceEntries + 4
	replaceEntry       = replaceLength + 4
	replaceUnder       = replaceEntry + 4*hooks
	replaceNumCounters = replaceUnder + 4*hooks
	replaceCounters    = replaceNumCounters + 4
)

// A pointer has 8 bytes, or this does not compile.
var _ [unsafe.Sizeof(uintptr(0)) - 8]struct{}

// socket is where a table of ip_tables is read and written.
type socket struct {
	fd    int
	table string // its name
}

func openSocket(table string) (socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return socket{}, fmt.Errorf("open a raw socket: %w", err)
	}
	return socket{fd, table}, nil
}

func (s socket) close() { unix.Close(s.fd) }

// get asks for an option whose value has a name or size in its beginning.
func (s socket) get(option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (s socket) set(option int, value []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(s.fd), unix.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// readTable reads the table. Linux answers EAGAIN if it has changed size after
// its size was told.
func (s socket) readTable() (*table, error) {
	for range attempts {
		l, data, err := s.readEntries()
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t, err := decode(l, data)
		if err != nil {
			return nil, fmt.Errorf("read table %s: %w", s.table, err)
		}
		return t, nil
	}
	return nil, fmt.Errorf("read table %s: it changes all the time: %w", s.table, unix.EAGAIN)
}

func (s socket) readEntries() (layout, []byte, error) {
	info, err := s.readInfo()
	if err != nil {
		return layout{}, nil, err
	}
	l := decodeInfo(info)
	entries := make([]byte, getEntriesSize+int(l.size))
	copy(entries, s.table)
	binary.NativeEndian.PutUint32(entries[tableNameLength:], l.size)
	if err := s.get(getEntries, entries); err != nil {
		return layout{}, nil, fmt.Errorf("read %d bytes of table %s (IPT_SO_GET_ENTRIES): %w", l.size, s.table, err)
	}
	return l, entries[getEntriesSize:], nil
}

func (s socket) readInfo() ([]byte, error) {
	info := make([]byte, infoSize)
	copy(info, s.table)
	if err := s.get(getInfo, info); err != nil {
		return nil, fmt.Errorf("read what table %s has (IPT_SO_GET_INFO): %w", s.table, err)
	}
	return info, nil
}

// decodeInfo reads a struct ipt_getinfo.
func decodeInfo(info []byte) layout {
	number := func(at int) uint32 { return binary.NativeEndian.Uint32(info[at:]) }
	l := layout{validHooks: number(infoHooks), entries: number(infoEntries), size: number(infoLength)}
	for hook := range hooks {
		l.hookEntry[hook], l.underflow[hook] = number(infoEntry+4*hook), number(infoUnder+4*hook)
	}
	return l
}

// writeTable replaces the table at once. Linux answers EAGAIN if the number of
// entries is not the one that was read.
func (s socket) writeTable(t *table) error {
	l, data := t.encode()
	// The kernel returns the counters of the old entries here, and starts those of
	// the new ones at 0.
	old := make([]byte, max(1, t.layout.entries)*countersSize)
	var pinned runtime.Pinner
	pinned.Pin(&old[0])
	defer pinned.Unpin()

	replace := make([]byte, replaceSize, replaceSize+len(data))
	put := func(at int, value uint32) { binary.NativeEndian.PutUint32(replace[at:], value) }
	copy(replace, s.table)
	put(tableNameLength, l.validHooks)
	put(replaceEntries, l.entries)
	put(replaceLength, l.size)
	for hook := range hooks {
		put(replaceEntry+4*hook, l.hookEntry[hook])
		put(replaceUnder+4*hook, l.underflow[hook])
	}
	put(replaceNumCounters, t.layout.entries)
	binary.NativeEndian.PutUint64(replace[replaceCounters:], uint64(uintptr(unsafe.Pointer(&old[0]))))
	if err := s.set(setReplace, append(replace, data...)); err != nil {
		return fmt.Errorf("write table %s of %d entries, %d bytes (IPT_SO_SET_REPLACE): %w", s.table, l.entries, l.size, err)
	}
	return s.addCounters(t, old)
}

// addCounters gives the entries that were in the old table their counters back.
func (s socket) addCounters(t *table, old []byte) error {
	value := make([]byte, countersHeader+len(t.entries)*countersSize)
	copy(value, s.table)
	binary.NativeEndian.PutUint32(value[tableNameLength:], uint32(len(t.entries)))
	counted := false
	for i, e := range t.entries {
		if e.read < 0 {
			continue
		}
		counters := old[e.read*countersSize:][:countersSize]
		counted = counted || binary.NativeEndian.Uint64(counters) != 0
		copy(value[countersHeader+i*countersSize:], counters)
	}
	if !counted { // always so in gVisor, which does not count
		return nil
	}
	if err := s.set(setAddCounters, value); err != nil {
		return fmt.Errorf("add the counters that table %s had (IPT_SO_SET_ADD_COUNTERS): %w", s.table, err)
	}
	return nil
}

// lockPatience is how long another program may hold the lock.
const lockPatience = 10 * time.Second

// lock takes the lock of iptables(8), at the place that its variable
// XTABLES_LOCKFILE names. Where there can be no such file nobody else has it.
func lock() (unlock func(), err error) {
	path := os.Getenv("XTABLES_LOCKFILE")
	if path == "" {
		path = "/run/xtables.lock"
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return func() {}, nil
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}
