package blocker

import (
	"context"
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
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		if err := probe.Seccomp(); err != nil {
			return Fine, fmt.Sprintf("the kernel has no seccomp, so no profile is asked for: %v", err)
		}
		runc := filepath.Join(h.Programs, "runc")
		output, err := exec.CommandContext(ctx, runc, "features").Output()
		if err != nil {
			return unclear(fmt.Errorf("%s features: %w", runc, err))
		}
		var features struct {
			Linux struct{ Seccomp struct{ Enabled bool } }
		}
		if err := json.Unmarshal(output, &features); err != nil {
			return unclear(fmt.Errorf("%s features: %w", runc, err))
		}
		if !features.Linux.Seccomp.Enabled {
			return Found, "runc features: no seccomp"
		}
		return Fine, "runc features: seccomp"
	},
}

var tmpfsOptions = Blocker{
	ID:      "tmpfs-options",
	Title:   "a tmpfs without limits",
	Symptom: "can't mask dir…nr_blocks=1,nr_inodes=2: invalid argument",
	Source:  "opencontainers/runc libcontainer/rootfs_linux.go maskDir, since 1.5; gVisor pkg/sentry/fsimpl/tmpfs of before July 2026",
	Remedy:  Patch,
	Action:  "runc here hides a directory with a read-only tmpfs without them",
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		return seen(probe.TmpfsOptions(ctx, path), "a tmpfs took nr_blocks and nr_inodes")
	},
}

var unprivilegedPorts = Blocker{
	ID:      "unprivileged-ports",
	Title:   "no sysctls for unprivileged ports and pings",
	Symptom: "open sysctl net.ipv4.ip_unprivileged_port_start",
	Source:  "containerd internal/cri/server/podsandbox; gVisor states Linux 4.19 and has no such sysctl",
	Remedy:  Setting,
	Check: func(context.Context, *Host) (Answer, string) {
		return seen(errors.Join(
			probe.Open("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
			probe.Open("/proc/sys/net/ipv4/ping_group_range")), "both sysctls are there")
	},
	Decide: func(_ context.Context, d *decision) {
		d.settings().Containerd.UnprivilegedPorts = false
		d.choose("unprivileged ports and pings", "containerd gets enable_unprivileged_ports and enable_unprivileged_icmp: false")
	},
}

var oomScore = Blocker{
	ID:      "oom-score",
	Title:   "no right to lower a process's OOM score",
	Symptom: "failed to update /proc/self/oom_score_adj: Permission denied",
	Source:  "opencontainers/runc libcontainer/nsenter/nsexec.c; a machine whose root lacks CAP_SYS_RESOURCE, such as an agent's sandbox or a container",
	Remedy:  Setting,
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		return seen(probe.OOMScore(ctx), "a process could lower its score")
	},
	Decide: func(_ context.Context, d *decision) {
		d.settings().Containerd.RestrictOOMScore = true
		d.choose("OOM scores", "containerd gets restrict_oom_score_adj: true, and gives pods at least its own score")
	},
}
