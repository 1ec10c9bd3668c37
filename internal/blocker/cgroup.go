package blocker

import (
	"context"

	"k3s9p/internal/probe"
)

var cgroupV1 = Blocker{
	ID:      "cgroup-v1",
	Title:   "cgroup v1",
	Symptom: "kubelet is configured to not run on a host using cgroup v1",
	Source:  "k8s.io/kubernetes pkg/kubelet/apis/config/validation/validation_linux.go, since 1.35 (KEP-5573)",
	Remedy:  Setting,
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		mounted, err := probe.Cgroups(probe.CgroupRoot)
		if err != nil {
			return unclear(err)
		}
		if len(mounted) == 0 {
			path, err := existing(h.Data)
			if err != nil {
				return unclear(err)
			}
			return seen(probe.OnlyCgroupV1(ctx, path), "cgroup2, which this kernel has, will be mounted")
		}
		v1, err := probe.CgroupV1()
		switch {
		case err != nil:
			return unclear(err)
		case v1:
			return Found, probe.CgroupRoot + " is not of type cgroup2"
		}
		return Fine, probe.CgroupRoot + " is of type cgroup2"
	},
	Decide: func(_ context.Context, d *decision) {
		d.settings().Kubelet.AllowCgroupV1 = true
		d.choose("cgroup v1", "the kubelet gets failCgroupV1: false")
	},
}

var cgroupFiles = Blocker{
	ID:      "cgroup-files",
	Title:   "cgroup v1 without optional files",
	Symptom: "failed to get rootfs info: unable to find data in memory cache",
	Source:  "opencontainers/cgroups fs/cpuacct.go and fs/memory.go; containerd/cgroups cgroup1/cpuacct.go and cgroup1/memory.go; gVisor pkg/sentry/fsimpl/cgroupfs",
	Remedy:  Patch,
	Action:  "the kubelet and the shim here take a sample without them",
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		return seen(probe.CgroupFiles(ctx, path), "the optional files of cgroup v1 are there, or cgroup v2 is used")
	},
}

var memoryLimits = Blocker{
	ID:      "memory-limits",
	Title:   "memory limits are not enforced",
	Symptom: "…uses more memory than its limit, and is not killed",
	Source:  "gVisor pkg/sentry/fsimpl/cgroupfs/memory.go; gvisor#13777",
	Remedy:  Warning,
	Action:  "a pod may use more than its limit, up to what the sandbox has",
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		return seen(probe.MemoryLimit(ctx), "a process that used more than its cgroup allows was killed")
	},
}
