package blocker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"k3s9p/internal/probe"
)

var seccomp = Blocker{
	ID:      "seccomp",
	Title:   "a runc without seccomp",
	Symptom: "seccomp: config provided but seccomp not supported",
	Source:  "opencontainers/runc libcontainer/seccomp/seccomp_unsupported.go: built without the tag seccomp",
	Remedy:  Patch,
	Action:  "runc here is built with libseccomp",
	Check: func(h *Host) (bool, string, error) {
		if err := probe.Seccomp(); err != nil {
			return false, fmt.Sprintf("the kernel has no seccomp, so no profile is asked for: %v", err), nil
		}
		runc := filepath.Join(h.Programs, "runc")
		output, err := exec.Command(runc, "features").Output()
		if err != nil {
			return false, "", fmt.Errorf("%s features: %w", runc, err)
		}
		var features struct {
			Linux struct{ Seccomp struct{ Enabled bool } }
		}
		if err := json.Unmarshal(output, &features); err != nil {
			return false, "", fmt.Errorf("%s features: %w", runc, err)
		}
		return !features.Linux.Seccomp.Enabled, fmt.Sprintf("runc features: seccomp %v", features.Linux.Seccomp.Enabled), nil
	},
}

var unprivilegedPorts = Blocker{
	ID:      "unprivileged-ports",
	Title:   "no sysctls for unprivileged ports and pings",
	Symptom: "open sysctl net.ipv4.ip_unprivileged_port_start",
	Source:  "containerd internal/cri/server/podsandbox; gVisor states Linux 4.19 and has no such sysctl",
	Remedy:  Setting,
	Action:  "containerd gets enable_unprivileged_ports and enable_unprivileged_icmp: false",
	Check: func(*Host) (bool, string, error) {
		return seen(errors.Join(
			probe.Open("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
			probe.Open("/proc/sys/net/ipv4/ping_group_range")), "both sysctls are there")
	},
	Fix: func(h *Host) error {
		h.Settings.Containerd.UnprivilegedPorts = false
		return nil
	},
}
