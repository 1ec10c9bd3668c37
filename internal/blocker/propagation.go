package blocker

import (
	"context"
	"slices"

	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
)

var mountPropagation = Blocker{
	ID:      "mount-propagation",
	Title:   "/ is not a shared mount",
	Symptom: "is mounted on \"/\" but it is not a shared mount",
	Source:  "containerd internal/cri/opts/spec_linux_opts.go; bites a pod with mountPropagation: Bidirectional or HostToContainer",
	Remedy:  Machine,
	Check: func(context.Context, *Host) (Answer, string) {
		unshared, err := probe.Unshared()
		if err != nil {
			return unclear(err)
		}
		if slices.ContainsFunc(unshared, probe.Unsharing.IsRoot) {
			return Found, "/proc/self/mountinfo: / is not shared"
		}
		return Fine, "/proc/self/mountinfo: / is shared"
	},
	Decide: func(_ context.Context, d *decision) { d.mount(sharing{}) },
}

// sharing makes all mounts shared.
type sharing struct{}

func (sharing) String() string { return "mount --make-rshared /" }

func (sharing) Make() error { return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "") }
