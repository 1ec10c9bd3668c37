package blocker

import (
	"context"
	"fmt"
	"os"

	"k3s9p/internal/probe"
)

var overlayfs = Blocker{
	ID:         "overlayfs",
	Title:      "overlayfs does not work on the data directory",
	Symptom:    "failed to mount…overlay",
	Source:     "containerd plugins/snapshots/overlay; a gVisor of before May 2026 refuses whiteouts (mknod c 0 0) on 9p",
	Remedy:     Setting,
	Action:     "containerd gets the snapshotter native, which copies files; where / itself is an overlay, it keeps images in memory",
	FixUnclear: true,
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		return seen(probe.Overlay(ctx, path), fmt.Sprintf("in a throw-away overlay in %s a file was deleted and a directory replaced", path))
	},
	Fix: func(h *Host) error {
		if err := os.MkdirAll(h.Data, 0o755); err != nil {
			return err
		}
		if h.OwnMounts && onTmpfs(h.Data) {
			h.Settings.Containerd.RootOnTmpfs = true
			return nil
		}
		h.Settings.Containerd.Snapshotter = "native"
		return nil
	},
}

// onTmpfs reports whether images go to memory: the root is an overlay, as gVisor's
// default is, whose upper layer is in memory already, and overlayfs on a tmpfs
// works. An overlay on an overlay is not planned there (gvisor#12828).
func onTmpfs(data string) bool {
	mount, err := probe.MountOf(data)
	return err == nil && mount.FSType == "overlay" && probe.OverlayOnTmpfs(context.Background(), data) == nil
}
