package blocker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/probe"
)

// The kubelet's defaults, in percent: images are deleted above the first one (85 %
// used), pods are evicted below the second and third.
const (
	imagesAvailable = 15
	inodesAvailable = 5
)

var diskThresholds = Blocker{
	ID:      "disk-thresholds",
	Title:   "a disk that is nearly full",
	Symptom: "\"Eviction manager: attempting to reclaim\"…ephemeral-storage",
	Source:  "k8s.io/kubernetes pkg/kubelet/eviction and pkg/kubelet/images/image_gc_manager.go; in a sandbox the disk is the host's",
	Remedy:  Setting,
	Action:  "the kubelet evicts below 500 MiB instead of 10 and 15 %, and deletes no images for others' use of the disk",
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
		available := percent(disk.BytesAvailable, disk.Bytes)
		evidence := fmt.Sprintf("statfs: %d %% of the filesystem of %s are available", available, path)
		found := available < imagesAvailable
		if disk.Inodes > 0 {
			inodes := percent(disk.InodesFree, disk.Inodes)
			evidence += fmt.Sprintf(", %d %% of its inodes", inodes)
			found = found || inodes < inodesAvailable
		}
		if found {
			return Found, evidence
		}
		return Fine, evidence
	},
	Fix: func(h *Host) error {
		h.Settings.Kubelet.ForeignDisk = true
		return nil
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
