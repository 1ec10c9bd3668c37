package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// CgroupRoot is where cgroups of either version are mounted.
const CgroupRoot = "/sys/fs/cgroup"

// CgroupV1 reports whether the controllers are mounted as cgroup v1: then
// /sys/fs/cgroup is not of type cgroup2 (man 7 cgroups). Where none are mounted, see
// [Cgroups], it means nothing.
func CgroupV1() (bool, error) { return cgroupV1(CgroupRoot) }

func cgroupV1(root string) (bool, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err != nil {
		return false, &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	return s.Type != unix.CGROUP2_SUPER_MAGIC, nil
}

// Cgroups lists the mounts of cgroups, of either version, at and below a directory.
func Cgroups(dir string) ([]string, error) {
	return fromTable(func(table io.Reader) ([]string, error) { return cgroupMounts(table, dir) })
}

func cgroupMounts(table io.Reader, dir string) ([]string, error) {
	mounts, err := mountinfo.GetMountsFromReader(table, mountinfo.PrefixFilter(dir))
	var points []string
	for _, mount := range mounts {
		if mount.FSType == "cgroup" || mount.FSType == "cgroup2" {
			points = append(points, mount.Mountpoint)
		}
	}
	return points, err
}

// MountCgroups mounts cgroup v2 where the kernel has the controllers there, and
// otherwise a directory per controller of cgroup v1: gVisor has seven (findings of
// September 2025 to 2026), and refuses two in one mount. One of them is its own, job:
// without it containerd finds no cgroup of a process, because it looks for the mount of
// each that /proc/PID/cgroup has (containerd/cgroups cgroup1/paths.go).
func MountCgroups(root string) error {
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err == nil {
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err == nil && slices.Contains(strings.Fields(string(controllers)), "memory") {
			return nil
		}
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount a cgroup2 without controllers: %w", err)
		}
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", root, err)
	}
	var failures error
	mounted := 0
	for _, controller := range []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "pids", "freezer", "blkio", "job"} {
		dir := filepath.Join(root, controller)
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
		return errors.Join(failures, unix.Unmount(root, unix.MNT_DETACH))
	}
	return nil
}

// OnlyCgroupV1 is an error where cgroup v1 is all that can be mounted. It mounts in a
// mount namespace of its own, at a directory below dir.
func OnlyCgroupV1(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error { return isolated(ctx, unix.CLONE_NEWNS, "only-cgroup-v1", root) })
}

func onlyCgroupV1(root string) error {
	if err := MountCgroups(root); err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	v1, err := cgroupV1(root)
	if err == nil && v1 {
		err = errors.New("cgroup v1 is all that can be mounted")
	}
	return err
}

// CgroupFiles opens the files of cgroup v1 that statistics are made of, and that a
// kernel may lack. Where no cgroups are mounted it mounts them as [OnlyCgroupV1] does.
func CgroupFiles(ctx context.Context, dir string) error {
	if mounted, err := Cgroups(CgroupRoot); err != nil || len(mounted) > 0 {
		return errors.Join(err, openCgroupFiles(CgroupRoot))
	}
	return withScratch(dir, func(root string) error { return isolated(ctx, unix.CLONE_NEWNS, "cgroup-files", root) })
}

func mountedCgroupFiles(root string) error {
	if err := MountCgroups(root); err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	return openCgroupFiles(root)
}

func openCgroupFiles(root string) error {
	v1, err := cgroupV1(root)
	if err != nil || !v1 {
		return err
	}
	return errors.Join(Open(filepath.Join(root, "cpuacct", "cpuacct.usage_percpu")), Open(filepath.Join(root, "memory", "memory.stat")))
}
