package probe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Open opens a file or device for reading.
func Open(path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return file.Close()
}

// CgroupV1 reports whether the controllers are mounted as cgroup v1: then
// /sys/fs/cgroup is not of type cgroup2 (man 7 cgroups).
func CgroupV1() (bool, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(CgroupRoot, &s); err != nil {
		return false, &os.PathError{Op: "statfs", Path: CgroupRoot, Err: err}
	}
	return s.Type != unix.CGROUP2_SUPER_MAGIC, nil
}

// Cgroups lists the mounts of cgroups, of either version, at and below a directory.
func Cgroups(dir string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	var points []string
	for _, mount := range mounts {
		if mount.FSType == "cgroup" || mount.FSType == "cgroup2" {
			points = append(points, mount.Mountpoint)
		}
	}
	return points, err
}

// CgroupRoot is where cgroups of either version are mounted.
const CgroupRoot = "/sys/fs/cgroup"

// CgroupFile returns the path of a file of a cgroup v1 controller's root.
func CgroupFile(controller, name string) string { return filepath.Join(CgroupRoot, controller, name) }

// Sysctl reads a kernel parameter and, if it has not the wanted value, writes back
// the one that it has: what the kernel refuses then, it would refuse a node too.
func Sysctl(name, wanted string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	value, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(value)) == wanted {
		return nil
	}
	return os.WriteFile(path, value, 0o644)
}

// OOMScore gives a process the score that the first process of a pod gets
// (proc_pid_oom_score_adj(5)): to lower one takes CAP_SYS_RESOURCE.
func OOMScore(ctx context.Context) error { return isolated(ctx, 0, "oom-score") }

func oomScore() error {
	const pause = "-998" // k8s.io/kubernetes pkg/kubelet/qos/policy.go, less one
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(pause), 0o644); err != nil {
		return fmt.Errorf("lower a process's oom_score_adj: %w", err)
	}
	return nil
}

// Seccomp asks the kernel for its seccomp mode, which fails on a kernel without
// (prctl(2), PR_GET_SECCOMP).
func Seccomp() error {
	if _, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_GET_SECCOMP: %w", err)
	}
	return nil
}
