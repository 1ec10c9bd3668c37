package blocker

import (
	"errors"
	"fmt"
	"os"
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
	Check: func(*Host) (bool, string, error) {
		v1, err := probe.CgroupV1()
		if errors.Is(err, os.ErrNotExist) {
			return false, "", fmt.Errorf("no cgroups are mounted: %w", err)
		}
		if v1 {
			return true, "/sys/fs/cgroup is not of type cgroup2", err
		}
		return false, "/sys/fs/cgroup is of type cgroup2", err
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
	Check: func(*Host) (bool, string, error) {
		if v1, err := probe.CgroupV1(); err != nil || !v1 {
			return false, "cgroup v1 is not used", err
		}
		var missing []string
		for _, file := range [][2]string{{"cpuacct", "cpuacct.usage_percpu"}, {"memory", "memory.stat"}} {
			path := probe.CgroupFile(file[0], file[1])
			if err := probe.Open(path); err != nil {
				missing = append(missing, err.Error())
			}
		}
		return len(missing) > 0, orFine(strings.Join(missing, "; "), "the optional files are there"), nil
	},
}

func orFine(found, fine string) string {
	if found == "" {
		return fine
	}
	return found
}
