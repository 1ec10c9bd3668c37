package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"k3s9p/internal/hint"
)

// cgroupRoot is where cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// needed are the controllers without which a kubelet does not start.
var needed = []string{"cpu", "memory", "pids"}

// Delegated is the directory of the cgroup of this process if that is one of cgroup v2
// which its user may divide, with the controllers that a node needs (kernel documentation,
// admin-guide/cgroup-v2, "Delegation"). Linux lets a user namespace mount the cgroups
// below the root of a cgroup namespace of its own, and no others. The error says what is
// missing, with the command that delegates one.
func Delegated() (string, error) {
	if _, err := os.Stat("/proc/self/ns/cgroup"); err != nil {
		return "", fmt.Errorf("this kernel has no cgroup namespaces: %w", err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &s); err != nil {
		return "", &os.PathError{Op: "statfs", Path: cgroupRoot, Err: err}
	}
	if s.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", hint.Add(fmt.Errorf("the controllers are not mounted as cgroup v2 at %s, and those of cgroup v1 cannot be delegated", cgroupRoot),
			"start the machine with systemd.unified_cgroup_hierarchy=1 on the command line of the kernel")
	}
	table, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return delegated(cgroupRoot, string(table))
}

// delegated finds the cgroup in a table as of /proc/PID/cgroup (cgroups(7)).
func delegated(root, table string) (string, error) {
	path, ok := "", false
	for line := range strings.Lines(table) {
		if path, ok = strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			break
		}
	}
	if !ok {
		return "", errors.New("/proc/self/cgroup names no cgroup of version 2")
	}
	dir := filepath.Join(root, path)
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if err := unix.Access(filepath.Join(dir, name), unix.W_OK); err != nil {
			return "", hint.Add(fmt.Errorf("the cgroup of this process is not delegated to its user: write to %s: %w", filepath.Join(dir, name), err),
				"systemd-run --user --scope --property=Delegate=yes k3s9p up")
		}
	}
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return "", err
	}
	var missing []string
	for _, controller := range needed {
		if !slices.Contains(strings.Fields(string(controllers)), controller) {
			missing = append(missing, controller)
		}
	}
	if len(missing) > 0 {
		return "", hint.Add(fmt.Errorf("the cgroup %s is delegated without the controllers %s", dir, strings.Join(missing, ", ")),
			"with systemd, as root: systemctl edit user@.service, with the lines [Service] and Delegate=cpu cpuset io memory pids; log in again")
	}
	return dir, nil
}

// Cgroup is the directory outside of the cgroup that is the root of the cgroup namespace
// of this process, or "" where [Start] has made none.
func Cgroup() string { return os.Getenv(cgroupVariable) }

// MountCgroup mounts the cgroups of that namespace in the place of the machine's.
func MountCgroup() error {
	if Cgroup() == "" {
		return nil
	}
	// The same filesystem is refused on its own mount point, and the machine's cannot be
	// taken away from in here (mount_namespaces(7)): a tmpfs goes between them.
	if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", cgroupRoot, err)
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the delegated cgroup at %s: %w", cgroupRoot, err)
	}
	return nil
}
