package blocker

import (
	"context"
	"fmt"

	"k3s9p/internal/probe"
)

var cgroupMounts = Blocker{
	ID:      "cgroup-mounts",
	Title:   "no cgroups are mounted",
	Symptom: "failed to get cgroup mounts",
	Source:  "k8s.io/kubernetes pkg/kubelet/cm; runsc mounts cgroups only where the OCI specification of the sandbox asks for it",
	Remedy:  Machine,
	Check: func(context.Context, *Host) (Answer, string) {
		mounted, err := probe.Cgroups(probe.CgroupRoot)
		switch {
		case err != nil:
			return unclear(err)
		case len(mounted) == 0:
			return Found, "the mount table has no cgroups at or below " + probe.CgroupRoot
		}
		return Fine, fmt.Sprintf("%d mounts of cgroups at or below %s", len(mounted), probe.CgroupRoot)
	},
	Decide: func(_ context.Context, d *decision) { d.mount(cgroupMounting{probe.CgroupRoot}) },
}

// cgroupMounting mounts the controllers that the kernel has at and below a directory.
type cgroupMounting struct{ root string }

func (m cgroupMounting) String() string {
	return "mount the controllers that the kernel has at " + m.root
}

func (m cgroupMounting) Make() error {
	if mounted, err := probe.Cgroups(m.root); err != nil || len(mounted) > 0 {
		return err
	}
	return probe.MountCgroups(m.root)
}
