package blocker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
	"k3s9p/internal/rmtree"
)

var cgroupMounts = Blocker{
	ID:      "cgroup-mounts",
	Title:   "no cgroups are mounted",
	Symptom: "failed to get cgroup mounts",
	Source:  "k8s.io/kubernetes pkg/kubelet/cm; runsc mounts cgroups only where the OCI specification of the sandbox asks for it",
	Remedy:  Machine,
	Action:  "the controllers that the kernel has are mounted below " + probe.CgroupRoot,
	Check: func(context.Context, *Host) (Answer, string) {
		mounted, err := probe.Cgroups(probe.CgroupRoot)
		switch {
		case err != nil:
			return unclear(err)
		case len(mounted) == 0:
			return Found, "the mount table has no cgroups at or below " + probe.CgroupRoot
		}
		return Fine, fmt.Sprintf("%d mounts of cgroups at or below %s", len(mounted), probe.CgroupRoot)
	},
	Fix: func(h *Host) error {
		if !h.OwnMounts {
			if err := h.journal().Record("cgroup-mounts", probe.CgroupRoot); err != nil {
				return err
			}
		}
		return mountCgroups()
	},
	Undo: func(h *Host) error {
		var root string
		ok, sameBoot, err := h.journal().Read("cgroup-mounts", &root)
		switch {
		case err != nil || !ok:
			return err
		case !sameBoot: // the mounts of that boot are gone
			return h.journal().Forget("cgroup-mounts")
		}
		mounts, err := rmtree.Mounts(root)
		for _, point := range slices.Backward(mounts) {
			err = errors.Join(err, unix.Unmount(point, unix.MNT_DETACH))
		}
		if err != nil {
			return fmt.Errorf("unmount the cgroups at %s: %w", root, err)
		}
		return h.journal().Forget("cgroup-mounts")
	},
}

// mountCgroups mounts cgroup v2 where the kernel has it, and otherwise a directory
// per controller of cgroup v1: gVisor has six (findings of September 2025 to 2026),
// and refuses two in one mount.
func mountCgroups() error {
	if err := unix.Mount("cgroup2", probe.CgroupRoot, "cgroup2", 0, ""); err == nil {
		return nil
	}
	if err := unix.Mount("tmpfs", probe.CgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", probe.CgroupRoot, err)
	}
	var failures error
	mounted := 0
	for _, controller := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "pids", "freezer", "blkio"} {
		dir := filepath.Join(probe.CgroupRoot, controller)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", dir, "cgroup", 0, controller); err != nil {
			failures = errors.Join(failures, fmt.Errorf("mount the controller %s: %w", controller, err), os.Remove(dir))
			continue
		}
		mounted++
	}
	if mounted == 0 {
		return errors.Join(failures, unix.Unmount(probe.CgroupRoot, unix.MNT_DETACH))
	}
	return nil
}
