package blocker

import (
	"context"
	"errors"

	"k3s9p/internal/probe"
)

var tunables = Blocker{
	ID:      "tunables",
	Title:   "kernel parameters that the kubelet sets are missing or refused",
	Symptom: "Failed to start ContainerManager…open /proc/sys/…no such file or directory",
	Source:  "k8s.io/kubernetes pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables",
	Remedy:  Patch,
	Action:  "the kubelet here skips them, with a line each",
	Check: func(context.Context, *Host) (Answer, string) {
		var refused error
		for _, parameter := range [][2]string{ // k8s.io/component-helpers/node/util/sysctl
			{"vm.overcommit_memory", "1"}, {"vm.panic_on_oom", "0"}, {"kernel.panic", "10"}, {"kernel.panic_on_oops", "1"},
			{"kernel.keys.root_maxkeys", "1000000"}, {"kernel.keys.root_maxbytes", "25000000"},
		} {
			refused = errors.Join(refused, probe.Sysctl(parameter[0], parameter[1]))
		}
		return seen(refused, "all six can be read, and opened for writing")
	},
}
