package node

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"k3s9p/internal/blocker"
	"k3s9p/internal/journal"
)

// clean takes back what a node has on this machine besides its data, however it
// ended, and whoever calls it: the node itself at its end, or down after a SIGKILL.
// All parts are tried; nothing to do is no error.
func clean(p Paths) error {
	if err := endProcesses(p); err != nil {
		return err // what they hold cannot be removed
	}
	return errors.Join(
		forgetNamespaces(p),
		journal.Undo[cgroupsChange](p.journal(), cgroupsRecord),
		journal.Undo[kubeProxyChange](p.journal(), kubeProxyRecord),
		journal.Undo[routesChange](p.journal(), routesRecord),
		journal.Undo[natChange](p.journal(), rulesRecord),
		journal.Undo[bridgeChange](p.journal(), bridgeRecord),
		journal.Undo[forwardChange](p.journal(), forwardRecord),
		blocker.Undo(p.journal()),
		unbind(p),
		removeData(p.run()),
	)
}

// endProcesses kills what a node left, until nothing of it is left.
func endProcesses(p Paths) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left, err := processes(p)
		if err != nil {
			return fmt.Errorf("look for processes of the node: %w", err)
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of the node do not end: %v", left)
		}
		for pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d (%s): %w", pid, left[pid], err)
			}
		}
	}
}

// processes are those of a node by their id, with their names: those whose program is
// below its data directory, the shims among them; what these have started, which is
// the containers; and those in its cgroups, which are the containers of shims that
// have ended. This process is not among them.
func processes(p Paths) (map[int]string, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	stats := make(map[int]procfs.ProcStat)
	children := make(map[int][]int)
	var roots []int
	for _, process := range all {
		stat, err := process.Stat()
		if err != nil || stat.State == "Z" || stat.State == "X" {
			continue // it has ended
		}
		stats[stat.PID] = stat
		children[stat.PPID] = append(children[stat.PPID], stat.PID)
		if program, err := process.Executable(); err == nil && (strings.HasPrefix(program, p.bundles()+"/") || strings.HasPrefix(program, p.k3s("data")+"/")) {
			roots = append(roots, stat.PID)
		}
	}
	for _, dir := range nodeCgroups(p) {
		list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for text := range strings.FieldsSeq(string(list)) {
			if pid, err := strconv.Atoi(text); err == nil {
				roots = append(roots, pid)
			}
		}
	}
	found := make(map[int]string)
	for len(roots) > 0 {
		pid := roots[len(roots)-1]
		roots = roots[:len(roots)-1]
		stat, lives := stats[pid]
		if _, known := found[pid]; known || !lives || pid <= 1 || pid == os.Getpid() {
			continue
		}
		found[pid] = stat.Comm
		roots = append(roots, children[pid]...)
	}
	return found, nil
}

// directoriesChange makes directories as places for mounts.
type directoriesChange struct {
	Made []string `json:"made"` // outer ones first
}

func (c directoriesChange) String() string { return "make " + strings.Join(c.Made, ", ") }

func (c directoriesChange) Make() error {
	for _, dir := range c.Made {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Undo removes those that are empty.
func (c directoriesChange) Undo(bool) error {
	for _, dir := range slices.Backward(c.Made) {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// kernelLog is what package blocker makes where there is none.
const kernelLog = "/dev/kmsg"

// missing are the directories that have to be made, outer ones first.
func (p Paths) missing(d distribution) []string {
	var missing []string
	for _, target := range slices.Concat(slices.Collect(maps.Keys(p.bound(d))), d.covered) {
		for dir := target; ; dir = filepath.Dir(dir) {
			if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
				break
			}
			missing = append(missing, dir)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// places are the directories of the machine in which a node makes something.
func (p Paths) places(d distribution) []string {
	places := []string{filepath.Dir(xtablesLock)}
	missing := p.missing(d)
	if _, err := os.Lstat(kernelLog); errors.Is(err, os.ErrNotExist) {
		missing = append(missing, kernelLog)
	}
	for _, path := range missing {
		dir := filepath.Dir(path)
		if !slices.Contains(missing, dir) {
			places = append(places, dir)
		}
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// binding mounts the node's own directories where programs have others built in.
type binding map[string]string

func (b binding) String() string {
	return "mount the node's own directories at " + strings.Join(slices.Sorted(maps.Keys(b)), ", ")
}

func (b binding) Make() error {
	for target, source := range b {
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", source, target, err)
		}
		// What is mounted below it must not show below the source as well: it leaves the
		// source's peer group for one of its own.
		for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
			if err := unix.Mount("", target, "", propagation, ""); err != nil {
				return fmt.Errorf("keep the mounts below %s to itself: %w", target, err)
			}
		}
	}
	return nil
}

// unbind removes the directories that were made as places for mounts. The mounts
// themselves are in the node's namespace; the node detaches them to get at the
// directories.
func unbind(p Paths) error {
	for target, source := range p.bound(k3sDistribution()) { // which has all that others have
		if sameDirectory(source, target) {
			if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", target, err)
			}
		}
	}
	return journal.Undo[directoriesChange](p.journal(), directoriesRecord)
}

// sameDirectory reports whether one directory is mounted at the other.
func sameDirectory(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
