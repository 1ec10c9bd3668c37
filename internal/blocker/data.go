package blocker

import (
	"context"

	"k3s9p/internal/probe"
)

var sharedMemory = Blocker{
	ID:      "shared-memory",
	Title:   "files of the data directory cannot be mapped into memory",
	Symptom: "failed to load plugin…metadata.v1.bolt…invalid argument",
	Source:  "go.etcd.io/bbolt bolt_unix.go; Linux fs/9p/vfs_file.c: with cache=none there is no shared mapping",
	Remedy:  None,
	Action:  "mount the filesystem with cache=mmap, or name a directory on another one with --data-dir",
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		return seen(probe.SharedMemory(ctx, path), "what was written to a shared mapping of a file in "+path+" was in the file")
	},
}

// socketMemory is how much memory each directory of sockets may take, in bytes: the
// runtime keeps some 50 KB for each container beside them.
const socketMemory = 64 << 20

var sockets = Blocker{
	ID:      "sockets",
	Title:   "no Unix sockets in the data directory",
	Symptom: "listen unix…bind: no such device or address",
	Source:  "QEMU hw/9pfs with security_model=passthrough refuses special files; containerd, kine and the kubelet listen on sockets",
	Remedy:  Machine,
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		path, err := existing(h.Data)
		if err != nil {
			return unclear(err)
		}
		return seen(probe.Socket(ctx, path), "a socket was made in "+path)
	},
	Decide: func(_ context.Context, d *decision) {
		for _, dir := range d.h.Sockets {
			d.mount(tmpfs{dir, socketMemory})
		}
	},
}
