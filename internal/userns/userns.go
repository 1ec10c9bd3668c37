// Package userns starts a process with all capabilities, in a user namespace and
// others of its own that these are for (user_namespaces(7)): what a sandbox refuses to
// its own root, such as mounts and network devices, it grants in there.
package userns

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are those of a node: runc also joins the ones for host names and for
// System V IPC, which has to be allowed to it.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// IDs is how many are mapped at most: images have users below 65536.
const IDs = 1 << 16

// The tables of the user namespace of this process.
const (
	usersFile  = "/proc/self/uid_map"
	groupsFile = "/proc/self/gid_map"
)

func mapped(file string) ([]syscall.SysProcIDMap, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := identity(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return ranges, nil
}

// identity maps the ids that there are here to themselves, in the form of
// /proc/PID/uid_map: a line "inside outside count" for each range.
func identity(table io.Reader) ([]syscall.SysProcIDMap, error) {
	var mappings []syscall.SysProcIDMap
	scanner := bufio.NewScanner(table)
	for scanner.Scan() {
		var first, outside, count int
		if _, err := fmt.Sscan(strings.TrimSpace(scanner.Text()), &first, &outside, &count); err != nil {
			return nil, fmt.Errorf("%q is no range of ids: %w", scanner.Text(), err)
		}
		if count = min(count, IDs-first); count > 0 {
			mappings = append(mappings, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: count})
		}
	}
	return mappings, scanner.Err()
}

// Mapped is how many users and groups there are in the user namespace of this process,
// at most those that a node's own one has.
func Mapped() (users, groups int, err error) {
	for file, count := range map[string]*int{usersFile: &users, groupsFile: &groups} {
		ranges, err := mapped(file)
		if err != nil {
			return 0, 0, err
		}
		for _, r := range ranges {
			*count += r.Size
		}
	}
	return users, groups, nil
}

// HasUser reports whether there is a user in the user namespace of this process, among
// those that a node's own one has.
func HasUser(uid int) (bool, error) { return has(usersFile, uid) }

// HasGroup reports the same about a group.
func HasGroup(gid int) (bool, error) { return has(groupsFile, gid) }

func has(file string, id int) (bool, error) {
	ranges, err := mapped(file)
	return slices.ContainsFunc(ranges, func(r syscall.SysProcIDMap) bool {
		return r.ContainerID <= id && id < r.ContainerID+r.Size
	}), err
}

// mapsAll reports whether this process may map all ids: it is root, with the
// capabilities for it.
func mapsAll() bool { return os.Geteuid() == 0 && capable(unix.CAP_SETUID) && capable(unix.CAP_SETGID) }

// Inside reports whether this process is in a user namespace: not all ids are mapped
// in it.
func Inside() bool {
	file, err := os.Open("/proc/self/uid_map")
	if err != nil {
		return false // a kernel without user namespaces
	}
	defer file.Close()
	return !complete(file)
}

// complete reports whether a table maps all ids, as that of the first user namespace
// does.
func complete(table io.Reader) bool {
	var first, outside, count int
	_, err := fmt.Fscan(table, &first, &outside, &count)
	return err == nil && first == 0 && outside == 0 && count == math.MaxUint32
}

// Missing are the capabilities of which a node with privileges needs at least these,
// and this process has not.
func Missing() []string {
	var missing []string
	for _, c := range []struct {
		capability int
		name       string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}} {
		if !capable(c.capability) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

func capable(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// knob is a parameter of the kernel that forbids user namespaces with one value.
type knob struct {
	name, forbids, allows string
	unprivileged          bool // to processes without CAP_SYS_ADMIN only
}

var knobs = []knob{
	{"user.max_user_namespaces", "0", "15000", false},                // namespaces(7)
	{"kernel.unprivileged_userns_clone", "0", "1", true},             // Debian
	{"kernel.apparmor_restrict_unprivileged_userns", "1", "0", true}, // Ubuntu, since 23.10
}

// Forbidden names the parameter of the kernel that forbids user namespaces to this
// process, with where it is and how it is changed, or is empty where none is known.
func Forbidden() string { return forbidden("/proc/sys", capable(unix.CAP_SYS_ADMIN)) }

func forbidden(dir string, privileged bool) string {
	for _, k := range knobs {
		file := filepath.Join(dir, strings.ReplaceAll(k.name, ".", "/"))
		value, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(value)) != k.forbids || privileged && k.unprivileged {
			continue
		}
		return fmt.Sprintf("%s is %s, which forbids user namespaces: as root on the host, sysctl -w %s=%s; a file in /etc/sysctl.d makes it last", file, k.forbids, k.name, k.allows)
	}
	return ""
}
