package blocker

import (
	"context"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
	"k3s9p/internal/progress"
)

var overlayfs = Blocker{
	ID:      "overlayfs",
	Title:   "overlayfs does not work on the data directory",
	Symptom: "failed to mount…overlay",
	Source:  "containerd plugins/snapshots/overlay; a gVisor of before May 2026 refuses whiteouts (mknod c 0 0) on 9p",
	Remedy:  Setting,
	Default: "copies of files work everywhere",
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		return seen(probe.Overlay(ctx, path), fmt.Sprintf("in a throw-away overlay in %s a file was deleted and a directory replaced", path))
	},
	Decide: func(ctx context.Context, d *decision) {
		containerd := &d.settings().Containerd
		r, err := roomOf(d.h.Data)
		d.reason += fmt.Sprintf("; %s of disk and %s of memory are available", progress.Size(r.disk), progress.Size(r.memory))
		size := r.tmpfs()
		if path, _ := existing(d.h.Data); err == nil && size > 0 && probe.OverlayOnTmpfs(ctx, path) == nil {
			d.mount(tmpfs{containerd.Root, size})
			containerd.Tmpfs = size
			d.choose(Images, fmt.Sprintf("overlayfs in at most %s of memory: they are gone after down", progress.Size(size)))
			return
		}
		containerd.Snapshotter = "native"
		d.choose(Images, fmt.Sprintf("native in %s: each layer of an image, and each container, is a copy of all files below it (300 MB in ten layers: 2 GB, and 8 times as long as in a tmpfs)", containerd.Root))
	},
}

// room is what images can be kept in where overlayfs does not work on the disk.
type room struct {
	fstype       string
	disk, memory int64 // available, in bytes
}

func roomOf(data string) (room, error) {
	path, err := existing(data)
	if err != nil {
		return room{}, err
	}
	mount, err := probe.MountOf(path)
	if err != nil {
		return room{}, err
	}
	disk, err := probe.DiskOf(path)
	if err != nil {
		return room{}, err
	}
	memory, err := probe.MemoryAvailable()
	return room{mount.FSType, int64(disk.BytesAvailable), memory}, err
}

// The least that images are put into memory with, and that they are copied to a disk
// with.
const (
	leastMemory = 2 << 30
	leastDisk   = 8 << 30
)

// tmpfs is how much of the memory images may have, or 0 if they go to the disk. Copies
// cost time and space (go tool mage bench -only=images), memory is lost at down: so a
// disk that lasts is taken, as long as it has room for copies; who wants it otherwise
// names a data directory on a tmpfs. An overlay root lasts as long as its sandbox, and its upper
// layer may be in memory itself; an overlay on it is not planned (gvisor#12828).
func (r room) tmpfs() int64 {
	if r.memory < leastMemory || r.fstype != "overlay" && r.disk >= leastDisk {
		return 0
	}
	const gib = 1 << 30 // in whole ones: what is available moves
	return r.memory / 2 / gib * gib
}

// tmpfs is mounted for images.
type tmpfs struct {
	at   string
	size int64
}

func (t tmpfs) String() string {
	return fmt.Sprintf("mount a tmpfs of at most %s at %s", progress.Size(t.size), t.at)
}

func (t tmpfs) Make() error {
	if err := os.MkdirAll(t.at, 0o711); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(t.at); err != nil || mounted {
		return err
	}
	return unix.Mount("tmpfs", t.at, "tmpfs", 0, fmt.Sprintf("mode=711,size=%d", t.size))
}
