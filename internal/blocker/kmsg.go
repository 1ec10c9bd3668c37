package blocker

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
)

// kernelLog is a variable for the tests.
var kernelLog = "/dev/kmsg"

// kmsgChange is what was done: one of the two.
type kmsgChange struct {
	Linked bool `json:"linked,omitempty"` // it was missing: a link to /dev/null
	Bound  bool `json:"bound,omitempty"`  // it could not be opened: /dev/null mounted over it
}

var kmsg = Blocker{
	ID:      "kmsg",
	Title:   "no /dev/kmsg",
	Symptom: "failed to create kubelet: open /dev/kmsg:",
	Source:  "k8s.io/kubernetes pkg/kubelet/oom/oom_watcher_linux.go",
	Remedy:  Machine,
	Action:  "/dev/kmsg becomes a link to /dev/null: kernel messages about killed processes are not reported",
	Check: func(context.Context, *Host) (Answer, string) {
		return seen(probe.Open(kernelLog), kernelLog+" can be read")
	},
	Fix: func(h *Host) error {
		if probe.Open(kernelLog) == nil {
			return nil
		}
		if _, err := os.Lstat(kernelLog); errors.Is(err, os.ErrNotExist) {
			if err := h.journal().Record("kmsg", kmsgChange{Linked: true}); err != nil {
				return err
			}
			return os.Symlink(os.DevNull, kernelLog)
		}
		if !h.OwnMounts {
			if err := h.journal().Record("kmsg", kmsgChange{Bound: true}); err != nil {
				return err
			}
		}
		if err := unix.Mount(os.DevNull, kernelLog, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s over %s: %w", os.DevNull, kernelLog, err)
		}
		return nil
	},
	Undo: func(h *Host) error {
		var change kmsgChange
		if ok, _, err := h.journal().Read("kmsg", &change); err != nil || !ok {
			return err
		}
		if change.Linked {
			if target, err := os.Readlink(kernelLog); err == nil && target == os.DevNull {
				if err := os.Remove(kernelLog); err != nil {
					return err
				}
			}
		}
		if change.Bound {
			mounted, err := mountinfo.Mounted(kernelLog)
			if err == nil && mounted {
				err = unix.Unmount(kernelLog, unix.MNT_DETACH)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("unmount %s: %w", kernelLog, err)
			}
		}
		return h.journal().Forget("kmsg")
	},
}
