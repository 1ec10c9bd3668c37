package blocker

import (
	"context"
	"errors"
	"fmt"
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
	Action:  "mount --make-rshared /, in the mount namespace of the node",
	Check: func(context.Context, *Host) (Answer, string) {
		unshared, err := probe.Unshared()
		if err != nil {
			return unclear(err)
		}
		if slices.ContainsFunc(unshared, func(m probe.Unsharing) bool { return m.Mountpoint == "/" }) {
			return Found, fmt.Sprintf("/proc/self/mountinfo: / and %d other mounts are not shared", len(unshared)-1)
		}
		return Fine, "/proc/self/mountinfo: / is shared"
	},
	Fix: func(h *Host) error {
		unshared, err := probe.Unshared()
		if err != nil {
			return err
		}
		if !h.OwnMounts {
			if err := h.journal().Record("mount-propagation", unshared); err != nil {
				return err
			}
		}
		if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make / and all below it shared: %w", err)
		}
		return nil
	},
	Undo: func(h *Host) error {
		var unshared []probe.Unsharing
		ok, sameBoot, err := h.journal().Read("mount-propagation", &unshared)
		switch {
		case err != nil || !ok:
			return err
		case !sameBoot: // the mounts of that boot are gone
			return h.journal().Forget("mount-propagation")
		}
		flags := map[probe.Propagation]uintptr{probe.Private: unix.MS_PRIVATE, probe.Slave: unix.MS_SLAVE, probe.Unbindable: unix.MS_UNBINDABLE}
		var failures error
		for _, m := range unshared {
			err := unix.Mount("", m.Mountpoint, "", flags[m.Propagation], "")
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // it is gone
				failures = errors.Join(failures, fmt.Errorf("make %s %s: %w", m.Mountpoint, m.Propagation, err))
			}
		}
		if failures != nil {
			return failures
		}
		return h.journal().Forget("mount-propagation")
	},
}
