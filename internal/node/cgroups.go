package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k3s9p/internal/probe"
)

const cgroupRoot = "/sys/fs/cgroup"

// unified reports whether cgroup v2 is what /sys/fs/cgroup has.
func unified() (bool, error) {
	v1, err := probe.CgroupV1()
	return !v1, err
}

// enableControllers makes the cgroup of cgroup v2 and hands it the controllers that
// its parent has (kernel documentation, admin-guide/cgroup-v2, "Controlling
// Controllers").
func enableControllers() error {
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enable := ""
	for _, controller := range strings.Fields(string(controllers)) {
		enable += " +" + controller
	}
	if err := os.Mkdir(cgroupRoot+cgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	for _, dir := range []string{cgroupRoot, cgroupRoot + cgroup} {
		// Where processes are in the parent this is refused; the kubelet says
		// what it lacks then.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.TrimSpace(enable)), 0o644)
	}
	return nil
}

// nodeCgroups are the directories of the node's cgroup, one per hierarchy.
func nodeCgroups() []string {
	dirs, _ := filepath.Glob(filepath.Join(cgroupRoot, "*"+cgroup))
	if _, err := os.Stat(cgroupRoot + cgroup); err == nil {
		dirs = append(dirs, cgroupRoot+cgroup)
	}
	return dirs
}

// removeCgroups removes the node's cgroups, innermost first. Their processes have
// to have ended; the kernel may need a moment to see that.
func removeCgroups() error {
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var failures error
		for _, root := range nodeCgroups() {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
					failures = errors.Join(failures, err)
				}
			}
		}
		if failures == nil || time.Now().After(deadline) {
			return failures
		}
	}
}
