package blocker

import (
	"fmt"
	"os"

	"k3s9p/internal/probe"
)

var overlayfs = Blocker{
	ID:      "overlayfs",
	Title:   "overlayfs does not work on the data folder",
	Symptom: "failed to mount…overlay",
	Source:  "containerd plugins/snapshots/overlay; a gVisor of before May 2026 refuses whiteouts (mknod c 0 0) on 9p",
	Remedy:  Setting,
	Action:  "containerd gets the snapshotter native, which copies files",
	Check: func(h *Host) (bool, string, error) {
		path, err := existing(h.Data)
		if err != nil {
			return false, "", err
		}
		return seen(probe.Overlay(path), fmt.Sprintf("in a throw-away overlay in %s a file was deleted and a folder replaced", path))
	},
	Fix: func(h *Host) error {
		if err := os.MkdirAll(h.Data, 0o755); err != nil {
			return err
		}
		h.Settings.Containerd.Snapshotter = "native"
		return nil
	},
}
