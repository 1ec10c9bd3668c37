package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
)

// ownCgroup is where the processes of a delegated cgroup go: no cgroup but the first one
// may have both processes and controllers for those below it (kernel documentation,
// admin-guide/cgroup-v2, "No Internal Process Constraint").
const ownCgroup = "k3s9p-own"

// delegation is a cgroup that was delegated to the user of a node without privileges. It
// is the root of the node's cgroup namespace, and a path outside of that.
type delegation struct {
	Dir   string `json:"dir"` // outside
	Inode uint64 `json:"inode"`
}

func (d delegation) String() string {
	return fmt.Sprintf("move the processes of the cgroup %s to the cgroup %s in it", d.Dir, ownCgroup)
}

// here is where this process sees it, or "" where it is gone.
func (d delegation) here() string {
	for _, dir := range []string{probe.CgroupRoot, d.Dir} {
		if inode, err := inodeOf(dir); err == nil && inode == d.Inode {
			return dir
		}
	}
	return ""
}

// inodeOf identifies a cgroup of version 2, while the machine runs, in whatever namespace
// it is seen.
func inodeOf(dir string) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Stat(dir, &s); err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return s.Ino, nil
}

// vacate moves the processes out of the way. In the first cgroup, which has no
// cgroup.events, they are not in it.
func (d delegation) vacate() error {
	if _, err := os.Stat(filepath.Join(d.here(), "cgroup.events")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	own := filepath.Join(d.here(), ownCgroup)
	if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	return moveProcesses(d.here(), own)
}

// restore takes that back, when there are no other cgroups in it.
func (d delegation) restore() error {
	dir := d.here()
	own := filepath.Join(dir, ownCgroup)
	if _, err := os.Stat(own); dir == "" || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	enabled, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(enabled)) {
		if err := os.WriteFile(control, []byte("-"+controller), 0o644); err != nil {
			return fmt.Errorf("take the controller %s back: %w", controller, err)
		}
	}
	if err := moveProcesses(own, dir); err != nil {
		return err
	}
	return os.Remove(own)
}

// moveProcesses moves all from one cgroup to another.
func moveProcesses(from, to string) error {
	for deadline := time.Now().Add(3 * time.Second); ; { // new ones may appear meanwhile
		list, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
		if err != nil || len(list) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("there are always new processes in the cgroup %s", from)
		}
		for pid := range strings.FieldsSeq(string(list)) {
			err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(pid), 0o644)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %s to the cgroup %s: %w", pid, to, err)
			}
		}
	}
}
