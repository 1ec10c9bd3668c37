package blocker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/probe"
)

// shared are the types of filesystems whose space is somebody else's: the host's of a
// sandbox or of a virtual machine, of a container, or a server's.
var shared = []string{"9p", "virtiofs", "overlay", "vboxsf", "prl_fs", "nfs", "nfs4", "cifs", "smb3"}

func isShared(fstype string) bool {
	return slices.Contains(shared, fstype) || strings.HasPrefix(fstype, "fuse")
}

var diskThresholds = Blocker{
	ID:      "disk-thresholds",
	Title:   "a disk that is shared with others",
	Symptom: "\"Eviction manager: attempting to reclaim\"…ephemeral-storage",
	Source:  "k8s.io/kubernetes pkg/kubelet/eviction and pkg/kubelet/images/image_gc_manager.go; in a sandbox the disk is the host's",
	Remedy:  Setting,
	Check: func(_ context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		disk, err := probe.DiskOf(path)
		if err != nil {
			return unclear(err)
		}
		if disk.Bytes == 0 {
			return Unclear, fmt.Sprintf("statfs: the filesystem of %s states no size", path)
		}
		mount, err := probe.MountOf(path)
		if err != nil {
			return unclear(err)
		}
		evidence := fmt.Sprintf("%s is on %s; %d %% of it are available", path, mount.FSType, percent(disk.BytesAvailable, disk.Bytes))
		if disk.Inodes > 0 {
			evidence += fmt.Sprintf(", %d %% of its inodes", percent(disk.InodesFree, disk.Inodes))
		}
		if isShared(mount.FSType) {
			return Found, evidence
		}
		return Fine, evidence
	},
	Decide: func(_ context.Context, d *decision) {
		d.settings().Kubelet.ForeignDisk = true
		d.choose(Eviction, "at less than 500 MiB of the disk or 100 MiB of memory; no images are deleted for others' use of the disk")
	},
}

func percent(part, whole uint64) int { return int(float64(part) / float64(whole) * 100) }

// existing is the path or the nearest directory above it that exists.
func existing(path string) (string, error) {
	for {
		_, err := os.Stat(path)
		if err == nil || !os.IsNotExist(err) || path == filepath.Dir(path) {
			return path, err
		}
		path = filepath.Dir(path)
	}
}
