package blocker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k3s9p/internal/probe"
)

// cadvisorTypes are the filesystem types that stock cAdvisor v0.56 reports besides
// ext* (fs/*/plugin.go).
var cadvisorTypes = []string{
	"xfs", "squashfs", "f2fs", "jfs", "reiserfs", "hfs", "hfsplus", "ntfs", "vfat", "fat", "msdos", "exfat", "udf", "iso9660",
	"btrfs", "zfs", "overlay", "tmpfs", "nfs", "nfs4",
}

var rootFilesystem = Blocker{
	ID:      "root-filesystem",
	Title:   "a filesystem that stock cAdvisor does not know",
	Symptom: "failed to get rootfs info: cannot find filesystem info for device",
	Source:  "google/cadvisor fs/vfs/plugin.go (\"don't act as a general fallback\"), since v0.56",
	Remedy:  Patch,
	Action:  "cAdvisor in the kubelet here reports 9p, and any other filesystem by statfs",
	Check: func(_ context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		mount, err := probe.MountOf(path)
		if err != nil {
			return unclear(err)
		}
		known := strings.HasPrefix(mount.FSType, "ext") || slices.Contains(cadvisorTypes, mount.FSType)
		evidence := fmt.Sprintf("%s is on %s, of type %s from %q", path, mount.Mountpoint, mount.FSType, mount.Source)
		if known {
			return Fine, evidence
		}
		return Found, evidence
	},
}
