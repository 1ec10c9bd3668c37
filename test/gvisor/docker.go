package gvisor

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// asDocker changes a specification into that of an unprivileged container, as Docker
// writes it (moby daemon/pkg/oci/defaults.go and caps/defaults.go): 14 capabilities,
// of which none is SYS_ADMIN or NET_ADMIN; /sys read-only; paths in /proc masked and
// read-only. No program gains privileges, as with --security-opt=no-new-privileges
// and in a pod with allowPrivilegeEscalation: false. There are no cgroups. A user that is
// not root (docker run --user) has none of the capabilities.
func asDocker(spec *specs.Spec, user uint32) {
	var names []string
	for _, name := range []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
		"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"} {
		names = append(names, "CAP_"+name)
	}
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
	if user != 0 {
		spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: names}
	}
	spec.Process.NoNewPrivileges = true
	hidden := []string{"nosuid", "noexec", "nodev"}
	spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: hidden},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: slices.Concat(hidden, []string{"ro"})},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: hidden},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: slices.Concat(hidden, []string{"mode=1777", "size=67108864"})},
	}
	spec.Linux.MaskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	spec.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
