package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
)

// The processes of a delegated cgroup are moved away, and are back when the node has
// ended, also where the cgroup is seen at another path.
func TestDelegation(t *testing.T) {
	mounts, err := probe.Cgroups(probe.CgroupRoot)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mounts, func(dir string) bool {
		var s unix.Statfs_t
		return unix.Statfs(dir, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
	})
	if i < 0 {
		t.Skip("no cgroup v2 here")
	}
	dir := filepath.Join(mounts[i], fmt.Sprintf("k3s9p-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	process := exec.Command("sleep", "60")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		_ = removeDirectories(cgroupsBelow([]string{dir}))
	})
	pid := fmt.Sprint(process.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0o644); err != nil {
		t.Fatal(err)
	}
	isIn := func(dir string) {
		t.Helper()
		list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || strings.TrimSpace(string(list)) != pid {
			t.Errorf("the cgroup %s has the processes %q, not %s: %v", dir, list, pid, err)
		}
	}
	inode, err := inodeOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := delegation{dir, inode}
	if err := d.vacate(); err != nil {
		t.Fatal(err)
	}
	isIn(filepath.Join(dir, ownCgroup))
	c := cgroupsChange{Name: cgroup, Delegation: &d}
	if err := os.Mkdir(dir+cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.Undo(true); err != nil {
		t.Fatal(err)
	}
	isIn(dir)
	if left := cgroupsBelow([]string{dir}); len(left) != 1 {
		t.Errorf("left are the cgroups %v", left)
	}
	if got := (delegation{dir, inode + 1}).here(); got != "" {
		t.Errorf("another cgroup at the same path, %s, is taken for it", got)
	}
}
