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
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are those of a node: runc also joins the ones for host names and for
// System V IPC, which has to be allowed to it.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Attributes are those of a process that starts in namespaces of its own. Ids are the
// same inside and outside where this process may map more than its own, which becomes
// root's otherwise.
func Attributes() (*syscall.SysProcAttr, error) {
	a := &syscall.SysProcAttr{Cloneflags: namespaces}
	if !MapsAll() {
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		return a, nil
	}
	a.GidMappingsEnableSetgroups = true
	for file, mappings := range map[string]*[]syscall.SysProcIDMap{"/proc/self/uid_map": &a.UidMappings, "/proc/self/gid_map": &a.GidMappings} {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		*mappings, err = identity(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	return a, nil
}

// ids is how many are mapped at most: images have users below 65536.
const ids = 1 << 16

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
		if count = min(count, ids-first); count > 0 {
			mappings = append(mappings, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: count})
		}
	}
	return mappings, scanner.Err()
}

// MapsAll reports whether this process may map all ids: it is root, with the
// capabilities for it.
func MapsAll() bool { return os.Geteuid() == 0 && has(unix.CAP_SETUID) && has(unix.CAP_SETGID) }

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
		if !has(c.capability) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

func has(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// Forbidden names the setting of the kernel that forbids user namespaces, with where
// it is, or is empty where none is known.
func Forbidden() string {
	for _, knob := range []struct{ file, value string }{
		{"/proc/sys/user/max_user_namespaces", "0"},                     // namespaces(7)
		{"/proc/sys/kernel/unprivileged_userns_clone", "0"},             // Debian
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"}, // Ubuntu 24.04
	} {
		if value, err := os.ReadFile(knob.file); err == nil && strings.TrimSpace(string(value)) == knob.value {
			return fmt.Sprintf("%s is %s", knob.file, knob.value)
		}
	}
	return ""
}
