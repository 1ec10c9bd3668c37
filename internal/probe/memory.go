package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// MemoryAvailable is what programs can still use without swapping, in bytes, as
// /proc/meminfo states it (proc_meminfo(5)), and no more than [Memory].
func MemoryAvailable() (int64, error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	info, err := proc.Meminfo()
	if err != nil {
		return 0, err
	}
	if info.MemAvailableBytes == nil {
		return 0, errors.New("/proc/meminfo states no MemAvailable")
	}
	all, _, err := Memory()
	return min(int64(*info.MemAvailableBytes), all), err
}

// Memory is what this process and those that it starts can use, in bytes: what the machine
// has (MemTotal, proc_meminfo(5)), or what the nearest cgroups allow if that is less; and
// which of the two it is.
func Memory() (bytes int64, by string, err error) {
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, "", err
	}
	info, err := proc.Meminfo()
	if err != nil {
		return 0, "", err
	}
	if info.MemTotalBytes == nil {
		return 0, "", errors.New("/proc/meminfo states no MemTotal")
	}
	bytes, by = int64(*info.MemTotalBytes), "the machine has"
	switch limit, err := memlimit.FromCgroup(); {
	case err != nil: // there is none, or there are no cgroups
	case limit < uint64(bytes):
		bytes, by = int64(limit), "its cgroup allows"
	}
	return bytes, by, nil
}

// cgroupPrefix is how the cgroups of probes are called, like [scratch].
const cgroupPrefix = "k3s9p-probe-"

// The limit that a probe sets, and what it uses then, in bytes. A Go program that
// has just started needs a few megabytes itself.
const (
	memoryLimit = 32 << 20
	memoryUse   = 96 << 20
)

// MemoryLimit lets a child use more memory than its cgroup allows. The error says
// that it could: a limit is a number that nobody enforces, as in gVisor.
func MemoryLimit(ctx context.Context) error {
	v1, err := CgroupV1()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	dir, file, swap, swapLimit := CgroupRoot, "memory.max", "memory.swap.max", 0
	if v1 { // whose limit of swap includes the memory
		dir, file, swap, swapLimit = filepath.Join(CgroupRoot, "memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", memoryLimit
	}
	group := filepath.Join(dir, fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return fmt.Errorf("%w: make a cgroup: %w", ErrUnclear, err)
	}
	defer removeCgroup(group)
	if err := os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(memoryLimit)), 0o644); err != nil {
		return fmt.Errorf("%w: limit a cgroup: %w", ErrUnclear, err)
	}
	_ = os.WriteFile(filepath.Join(group, swap), []byte(strconv.Itoa(swapLimit)), 0o644) // where there is swap
	err = isolated(ctx, 0, "memory", group)
	if errors.Is(err, errKilled) {
		return nil
	}
	return err
}

// use moves into a cgroup and uses more than that allows.
func use(group string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("%w: enter a cgroup: %w", ErrUnclear, err)
	}
	memory, err := unix.Mmap(-1, 0, memoryUse, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil // that is a limit as well
	}
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	return fmt.Errorf("a process in a cgroup with a limit of %d MiB used %d MiB", memoryLimit>>20, memoryUse>>20)
}

// removeCgroup waits until the kernel has noticed that its process has ended.
func removeCgroup(group string) {
	for deadline := time.Now().Add(2 * time.Second); os.Remove(group) != nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for pid := range strings.FieldsSeq(readAll(filepath.Join(group, "cgroup.procs"))) {
			if number, err := strconv.Atoi(pid); err == nil && number > 1 && number != os.Getpid() {
				_ = unix.Kill(number, unix.SIGKILL)
			}
		}
	}
}

func readAll(name string) string {
	data, _ := os.ReadFile(name)
	return string(data)
}
