// Copyright 2026 The k3s9p Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

//go:build linux

package generic_test

import (
	"testing"

	mount "github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/google/cadvisor/fs"
	_ "github.com/google/cadvisor/fs/btrfs/install"
	"github.com/google/cadvisor/fs/generic"
	_ "github.com/google/cadvisor/fs/nfs/install"
	_ "github.com/google/cadvisor/fs/overlay/install"
	_ "github.com/google/cadvisor/fs/tmpfs/install"
	_ "github.com/google/cadvisor/fs/vfs/install" // installs generic too
	_ "github.com/google/cadvisor/fs/zfs/install"
)

func TestPluginOfEachType(t *testing.T) {
	for plugin, types := range map[string][]string{
		"9p": {"9p"},
		"statfs": {"virtiofs", "fuse", "fuse.sshfs", "fuse.bindfs", "fuseblk", "bcachefs", "ceph", "fuse.ceph", "cifs", "smb3",
			"vboxsf", "drvfs", "prl_fs", "fakeowner", "erofs", "lustre", "gpfs", "beegfs", "ocfs2", "glusterfs", "afs", "ntfs3", "apfs"},
		"vfs":     {"ext2", "ext4", "xfs", "vfat", "squashfs"},
		"overlay": {"overlay"},
		"tmpfs":   {"tmpfs"},
		"btrfs":   {"btrfs"},
		"nfs":     {"nfs", "nfs4"},
		"zfs":     {"zfs"},
		"": {"proc", "sysfs", "cgroup", "cgroup2", "devtmpfs", "dev", "devpts", "mqueue", "securityfs", "debugfs", "tracefs", "bpf",
			"pstore", "configfs", "fusectl", "hugetlbfs", "autofs", "binfmt_misc", "efivarfs", "rpc_pipefs", "nsfs", "ramfs", "rootfs"},
	} {
		for _, fsType := range types {
			name := ""
			if p := fs.GetPluginForFsType(fsType); p != nil {
				name = p.Name()
			}
			if name != plugin {
				t.Errorf("%s is handled by %q, want %q", fsType, name, plugin)
			}
		}
	}
}

func TestFilesystemWithoutBlocksIsNoPartition(t *testing.T) {
	proc := fs.PartitionInfo{Mountpoint: "/proc", FsType: "newpseudofs"}
	for _, plugin := range []fs.FsPlugin{generic.NewFallbackPlugin(), generic.New9PPlugin()} {
		if stats, err := plugin.GetStats("none", proc); stats != nil || err != nil {
			t.Errorf("%s reports a filesystem without blocks: %+v, %v", plugin.Name(), stats, err)
		}
	}
	include, _, err := generic.NewFallbackPlugin().ProcessMount(&mount.Info{Source: "/dev/pseudo", Mountpoint: "/proc", FSType: "newpseudofs"})
	if include || err != nil {
		t.Errorf("a filesystem without blocks became a partition (%v)", err)
	}
}

func TestStatsEqualStatfs(t *testing.T) {
	var want unix.Statfs_t
	if err := unix.Statfs("/", &want); err != nil {
		t.Fatal(err)
	}
	got, err := generic.New9PPlugin().GetStats("none_0-18", fs.PartitionInfo{Mountpoint: "/", FsType: "9p"})
	if err != nil {
		t.Fatal(err)
	}
	if size := uint64(want.Frsize) * want.Blocks; got.Capacity != size {
		t.Errorf("capacity is %d bytes, statfs says %d", got.Capacity, size)
	}
	// Others write to this filesystem meanwhile.
	const slack = 64 << 20
	for name, pair := range map[string][2]uint64{
		"free":      {got.Free, uint64(want.Frsize) * want.Bfree},
		"available": {got.Available, uint64(want.Frsize) * want.Bavail},
	} {
		if diff := int64(pair[0] - pair[1]); diff > slack || diff < -slack {
			t.Errorf("%s is %d bytes, statfs says %d", name, pair[0], pair[1])
		}
	}
}
