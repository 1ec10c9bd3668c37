package blocker

import (
	"context"
	"strings"

	"k3s9p/internal/probe"
)

var cgroupV1 = Blocker{
	ID:      "cgroup-v1",
	Title:   "cgroup v1",
	Symptom: "kubelet is configured to not run on a host using cgroup v1",
	Source:  "k8s.io/kubernetes pkg/kubelet/apis/config/validation/validation_linux.go, since 1.35 (KEP-5573)",
	Remedy:  Setting,
	Action:  "the kubelet gets failCgroupV1: false",
	Check: func(context.Context, *Host) (Answer, string) {
		v1, err := probe.CgroupV1()
		switch {
		case err != nil:
			return unclear(err)
		case v1:
			return Found, "/sys/fs/cgroup is not of type cgroup2"
		}
		return Fine, "/sys/fs/cgroup is of type cgroup2"
	},
	Fix: func(h *Host) error {
		h.Settings.Kubelet.AllowCgroupV1 = true
		return nil
	},
}

var cgroupFiles = Blocker{
	ID:      "cgroup-files",
	Title:   "cgroup v1 without optional files",
	Symptom: "failed to get rootfs info: unable to find data in memory cache",
	Source:  "opencontainers/cgroups fs/cpuacct.go and fs/memory.go; containerd/cgroups cgroup1/cpuacct.go and cgroup1/memory.go; gVisor pkg/sentry/fsimpl/cgroupfs",
	Remedy:  Patch,
	Action:  "the kubelet and the shim here take a sample without them",
	Check: func(context.Context, *Host) (Answer, string) {
		switch v1, err := probe.CgroupV1(); {
		case err != nil:
			return unclear(err)
		case !v1:
			return Fine, "cgroup v1 is not used"
		}
		var missing []string
		for _, file := range [][2]string{{"cpuacct", "cpuacct.usage_percpu"}, {"memory", "memory.stat"}} {
			path := probe.CgroupFile(file[0], file[1])
			if err := probe.Open(path); err != nil {
				missing = append(missing, err.Error())
			}
		}
		return missingOr(missing, "the optional files are there")
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

// missingOr is found with what is missing, if anything is.
func missingOr(missing []string, fine string) (Answer, string) {
	if len(missing) > 0 {
		return Found, strings.Join(missing, "; ")
	}
	return Fine, fine
}
