package node

import (
	"encoding/json"
	"fmt"
	"time"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Summary returns the kubelet's /stats/summary, once it has a sample of the
// node's filesystem.
func (n *Node) Summary() stats.Summary {
	n.t.Helper()
	var summary stats.Summary
	n.Await("a sample of the node's filesystem", 60*time.Second, func() bool {
		summary = stats.Summary{}
		answer, err := n.Exec(n.t.Context(), "inside", "http", "GET", ReadOnly+"/stats/summary")
		return err == nil && json.Unmarshal([]byte(answer), &summary) == nil &&
			summary.Node.Fs != nil && summary.Node.Fs.CapacityBytes != nil && *summary.Node.Fs.CapacityBytes > 0
	})
	return summary
}

// Disk is what statfs says in the sandbox.
type Disk struct{ Bytes, Available, Inodes, InodesFree uint64 }

// Statfs asks for the filesystem of /.
func (n *Node) Statfs() Disk { return n.statfs("/") }

func (n *Node) statfs(path string) Disk {
	n.t.Helper()
	var d Disk
	var fsType int64
	var free uint64
	if _, err := fmt.Sscan(n.Must("inside", "statfs", path), &fsType, &d.Bytes, &free, &d.Available, &d.Inodes, &d.InodesFree); err != nil {
		n.t.Fatal(err)
	}
	return d
}

// slack is by how many bytes what is reported as available may be another number than
// what statfs says: a sample is up to a minute old, and others write meanwhile on the
// machine's own disk.
const slack = 2 << 30

// CheckFilesystem compares what the kubelet reports of the node's filesystem with
// statfs.
func (n *Node) CheckFilesystem() {
	n.t.Helper()
	before, summary, after := n.Statfs(), n.Summary(), n.Statfs()
	fs := summary.Node.Fs
	if *fs.CapacityBytes != after.Bytes {
		n.t.Errorf("the node's filesystem has %d bytes, statfs says %d", *fs.CapacityBytes, after.Bytes)
	}
	low, high := min(before.Available, after.Available), max(before.Available, after.Available)
	if fs.AvailableBytes == nil || *fs.AvailableBytes+slack < low || *fs.AvailableBytes > high+slack {
		n.t.Errorf("%v bytes are available, statfs says %d to %d", fs.AvailableBytes, low, high)
	}
	switch {
	case after.Inodes == 0 && fs.Inodes != nil:
		n.t.Errorf("%d inodes are reported of a filesystem without an inode table", *fs.Inodes)
	case after.Inodes > 0 && (fs.Inodes == nil || *fs.Inodes != after.Inodes || fs.InodesFree == nil):
		n.t.Errorf("the inodes are reported as %v, statfs says %d", fs.Inodes, after.Inodes)
	}
	// Where no overlay works on the root it is a tmpfs.
	images := n.statfs(n.machine.Plan.Settings.Containerd.Root).Bytes
	if runtime := summary.Node.Runtime; runtime == nil || runtime.ImageFs == nil || runtime.ImageFs.CapacityBytes == nil || *runtime.ImageFs.CapacityBytes != images {
		n.t.Errorf("the images' filesystem is reported as %+v, statfs says %d bytes", summary.Node.Runtime, images)
	}
}
