package gvisor

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// asMachine changes a specification into that of a machine of its own on this kernel, which
// runc starts: with all devices, the kernel's log, and cgroups that it may divide further.
// The cgroups have the given name at the top of each hierarchy.
func asMachine(spec *specs.Spec, cgroups string) {
	hidden := []string{"nosuid", "noexec"}
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: append(hidden, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")},
		specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: hidden},
	)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	// What this process may not do, in a container say, it cannot grant either.
	all := spec.Process.Capabilities.Bounding
	var granted []string
	for i, name := range all {
		if there, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && there == 1 {
			granted = append(granted, name)
		}
	}
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: granted, Effective: granted, Inheritable: granted, Permitted: granted}
	if len(granted) < len(all) {
		spec.Process.Rlimits = nil
	}
	spec.Linux.CgroupsPath = "/" + cgroups
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}}
	spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
}

// innermost is the id that a process has in its own process namespace (proc(5), NSpid).
func innermost(pid string) (string, error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(ids)
			return fields[len(fields)-1], nil
		}
	}
	return "", fmt.Errorf("/proc/%s/status has no NSpid", pid)
}
