package blocker

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"k3s9p/internal/journal"
	"k3s9p/internal/probe"
)

// kernelLog is a variable for the tests.
var kernelLog = "/dev/kmsg"

var kmsg = Blocker{
	ID:      "kmsg",
	Title:   "no /dev/kmsg",
	Symptom: "failed to create kubelet: open /dev/kmsg:",
	Source:  "k8s.io/kubernetes pkg/kubelet/oom/oom_watcher_linux.go",
	Remedy:  Machine,
	Check: func(context.Context, *Host) (Answer, string) {
		return seen(probe.Open(kernelLog), kernelLog+" can be read")
	},
	Decide: func(_ context.Context, d *decision) {
		if _, err := os.Lstat(kernelLog); errors.Is(err, os.ErrNotExist) || d.h.journal().Has("kmsg") {
			if d.plan.Covered(kernelLog) {
				d.mount(kmsgLink{Linked: true})
				return
			}
			change(d, kmsgLink{Linked: true})
			return
		}
		d.mount(kmsgMounting{})
	},
	Undo: journal.Undo[kmsgLink],
}

// kmsgLink makes the missing file a link to /dev/null: kernel messages about killed
// processes are not reported then.
type kmsgLink struct {
	Linked bool `json:"linked"`
}

func (kmsgLink) String() string { return "make " + kernelLog + " a link to " + os.DevNull }

func (kmsgLink) Make() error {
	err := os.Symlink(os.DevNull, kernelLog)
	if errors.Is(err, os.ErrExist) && linked() {
		return nil
	}
	return err
}

// Undo leaves what somebody else has put there meanwhile.
func (c kmsgLink) Undo(bool) error {
	if c.Linked && linked() {
		return os.Remove(kernelLog)
	}
	return nil
}

func linked() bool {
	target, err := os.Readlink(kernelLog)
	return err == nil && target == os.DevNull
}

// kmsgMounting hides a file that cannot be opened.
type kmsgMounting struct{}

func (kmsgMounting) String() string { return "mount " + os.DevNull + " over " + kernelLog }

func (kmsgMounting) Make() error {
	if probe.Open(kernelLog) == nil {
		return nil
	}
	return unix.Mount(os.DevNull, kernelLog, "", unix.MS_BIND, "")
}
