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

package fs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	mount "github.com/moby/sys/mountinfo"

	"github.com/google/cadvisor/fs"
	"github.com/google/cadvisor/fs/btrfs"
	"github.com/google/cadvisor/fs/generic"
	"github.com/google/cadvisor/fs/nfs"
	"github.com/google/cadvisor/fs/overlay"
	"github.com/google/cadvisor/fs/tmpfs"
	"github.com/google/cadvisor/fs/vfs"
	"github.com/google/cadvisor/fs/zfs"
)

// dir is a directory, with the device numbers that stat(2) gives for it, and the
// partition that it is on.
type dir struct {
	path         string
	major, minor uint
	partition    string
}

// The origin of each table is told in testdata/mountinfo/README.md. Mounts of
// tmpfs are left out of the expectations, except in the case that is about them.
var mountTables = []struct {
	name     string
	root     string   // the key that the label of the root filesystem names
	reported []string // "key mountpoint"
	onDemand []string
	dirs     []dir
}{
	{
		name: "gvisor-9p-root",
		root: "none_0-18",
		reported: []string{
			"none_0-18 /",
			"none_0-24 /data",
			"none_0-27 /etc/hosts",
			"none_0-31 /run/ovl/merged",
		},
		dirs: []dir{
			{"/var/lib/kubelet", 0, 18, "none_0-18"},
			{"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs", 0, 18, "none_0-18"},
			{"/data/images", 0, 24, "none_0-24"},
			{"/run/ovl/merged/etc", 0, 31, "none_0-31"},
			{"/var/lib/kubelet/pods/x", 0, 29, "/var/lib/kubelet/pods/x"},
			{"/var/lib/kubelet", 0, 99, "none_0-18"}, // by the longest mount point
			{"/data/images", 0, 99, "none_0-24"},
			{"/proc/self", 0, 23, ""},
			{"/dev", 0, 19, ""},
		},
	},
	{
		name: "gvisor-9p-root-rshared-binds",
		root: "none_0-18",
		reported: []string{
			"none_0-18 /",
			"none_0-24 /data",
			"none_0-27 /etc/hosts",
			"none_0-33 /run/ovl/merged",
		},
		dirs: []dir{{"/var/lib/kubelet", 0, 18, "none_0-18"}},
	},
	{
		name: "gvisor-overlay-root",
		root: "none_0-20",
		reported: []string{
			"none_0-20 /",
			"none_0-26 /data",
			"none_0-29 /etc/hosts",
			"none_0-34 /run/ovl/merged",
		},
		dirs: []dir{
			{"/var/lib/kubelet", 0, 20, "none_0-20"},
			{"/data", 0, 26, "none_0-26"},
		},
	},
	{
		name:     "linux-9p-root",
		root:     "root_0-21",
		reported: []string{"overlay_0-30 /run/ovl/merged", "root_0-21 /", "share_0-27 /mnt/share"},
		dirs: []dir{
			{"/var/lib/kubelet", 0, 21, "root_0-21"},
			{"/mnt/bind/x", 0, 27, "share_0-27"},
			{"/mnt/bind/x", 0, 99, "share_0-27"}, // the bind mount's own device
		},
	},
	{
		name:     "linux-virtiofs-root",
		root:     "rootfs_0-21",
		reported: []string{"overlay_0-30 /run/ovl/merged", "rootfs_0-21 /"},
		onDemand: []string{"share_0-27 /mnt/share"},
		dirs: []dir{
			{"/var/lib/kubelet", 0, 21, "rootfs_0-21"},
			{"/mnt/bind/x", 0, 27, "share_0-27"},
			{"/mnt/share", 0, 99, "share_0-27"},
		},
	},
	{
		name:     "host",
		root:     "/dev/vda",
		reported: []string{"/dev/vda /"},
		dirs:     []dir{{"/var/lib/kubelet", 254, 0, "/dev/vda"}, {"/sys/fs/cgroup/cpu", 0, 29, ""}},
	},
	{
		// The table gives one device number for all subvolumes; stat(2) gives
		// others (here 0:41, 0:42, 0:43), so they are found by mount point.
		name:     "btrfs-subvolumes",
		root:     "/dev/vda",
		reported: []string{"/dev/loop0 /mnt/top", "/dev/vda /"},
		dirs: []dir{
			{"/mnt/top/x", 0, 41, "/dev/loop0"},
			{"/mnt/a", 0, 42, "/dev/loop0"},
			{"/mnt/b/x/y", 0, 43, "/dev/loop0"},
			{"/mnt/bind", 0, 42, "/dev/loop0"},
		},
	},
	{
		name: "tmpfs",
		root: "/dev/vda",
		reported: []string{
			"/dev/shm /dev/shm", "/dev/vda /", "/mnt /mnt", "/mnt/bindsub /mnt/bindsub", "/mnt/default /mnt/default",
			"/mnt/none /mnt/none", "/mnt/nr100 /mnt/nr100", "/mnt/nrblocks0 /mnt/nrblocks0", "/mnt/nrinodes0 /mnt/nrinodes0",
			"/mnt/ro /mnt/ro", "/mnt/shared /mnt/shared", "/mnt/size64m /mnt/size64m", "/mnt/slave /mnt/slave",
			"/mnt/slaveshared /mnt/slaveshared", "/mnt/sp ace /mnt/sp ace", "/mnt/unbind /mnt/unbind", "/sys/fs/cgroup /sys/fs/cgroup",
		},
		dirs: []dir{
			{"/mnt/slave", 0, 46, "/mnt/slave"}, // three mounts have this device: the one above the directory
			{"/mnt/slaveshared/x", 0, 46, "/mnt/slaveshared"},
			{"/mnt/none", 0, 50, "/mnt/none"},
		},
	},
	{
		name:     "fuse",
		root:     "/dev/vda",
		reported: []string{"/dev/vda /"},
		onDemand: []string{
			"/mnt/src_0-40 /mnt/bindfs",
			"/usr/share/doc_0-41 /mnt/bindfsmulti",
			"fuse-overlayfs_0-42 /mnt/fo",
		},
		dirs: []dir{{"/mnt/bind/x", 0, 40, "/mnt/src_0-40"}, {"/mnt/ctl", 0, 43, ""}},
	},
	{
		name:     "wsl2",
		root:     "/dev/sda",
		reported: []string{"/dev/sda /", `C:\_0-40 /mnt/c`, `D:\_0-41 /mnt/d`, "tools_0-16 /init"},
		dirs:     []dir{{"/var/lib/kubelet", 8, 0, "/dev/sda"}, {"/mnt/c/Users", 0, 40, `C:\_0-40`}},
	},
	{
		name:     "crostini",
		root:     "/dev/vdb",
		reported: []string{"/dev/vdb /", "9p_0-33 /mnt/chromeos"},
		onDemand: []string{"lxcfs_0-41 /proc/meminfo"},
		dirs:     []dir{{"/mnt/chromeos/MyFiles", 0, 33, "9p_0-33"}, {"/var/lib/kubelet", 0, 44, "/dev/vdb"}},
	},
	{
		name:     "kata",
		root:     "kataShared_0-34",
		reported: []string{"kataShared_0-34 /"},
		dirs:     []dir{{"/v1", 0, 34, "kataShared_0-34"}, {"/dev/null", 0, 5, ""}},
	},
	{
		name:     "kata-none",
		root:     "none_0-35",
		reported: []string{"none_0-35 /"},
		onDemand: []string{"kataShared_0-33 /etc/hostname"},
		dirs:     []dir{{"/var/lib/kubelet", 0, 35, "none_0-35"}},
	},
	{
		name:     "lima",
		root:     "/dev/vda1",
		reported: []string{"/dev/vda1 /"},
		onDemand: []string{"mount0_0-40 /Users/user", "mount1_0-41 /tmp/lima"},
		dirs:     []dir{{"/tmp/lima/k3s", 0, 41, "mount1_0-41"}},
	},
	{
		name:     "lima-9p",
		root:     "/dev/vda1",
		reported: []string{"/dev/vda1 /", "mount0_0-40 /Users/user", "mount1_0-41 /tmp/lima"},
	},
	{
		name:     "lima-reverse-sshfs",
		root:     "/dev/vda1",
		reported: []string{"/dev/vda1 /"},
		onDemand: []string{":/Users/user_0-43 /Users/user", ":/tmp/lima_0-44 /tmp/lima"},
		dirs:     []dir{{"/workspace/x", 0, 43, ":/Users/user_0-43"}},
	},
}

func TestMountTables(t *testing.T) {
	tested := make(map[string]bool)
	for _, test := range mountTables {
		tested[test.name+".mountinfo"] = true
		t.Run(test.name, func(t *testing.T) {
			withKubeletPlugins(t)
			mounts := readMountinfo(t, filepath.Join("testdata", "mountinfo", test.name+".mountinfo"))
			info := fs.NewForMounts(mounts)

			reported, onDemand := info.Reported(), withoutTmpfs(info.OnDemand())
			if test.name != "tmpfs" {
				reported = withoutTmpfs(reported)
			}
			if diff := cmp.Diff(test.reported, reported); diff != "" {
				t.Errorf("partitions in every sample (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.onDemand, onDemand); diff != "" {
				t.Errorf("partitions on demand (-want +got):\n%s", diff)
			}
			if root, err := info.GetDeviceForLabel(fs.LabelSystemRoot); err != nil || root != test.root {
				t.Errorf("the root label names %q (%v), want %q", root, err, test.root)
			}
			for _, dir := range test.dirs {
				if got := info.DeviceForDir(dir.path, dir.major, dir.minor); got != dir.partition {
					t.Errorf("%s on device %d:%d is on partition %q, want %q", dir.path, dir.major, dir.minor, got, dir.partition)
				}
			}
			for _, key := range info.Keys() {
				if _, err := info.GetMountpointForDevice(key); err != nil {
					t.Error(err)
				}
			}
			everyFilesystemIsAPartition(t, mounts, info)
		})
	}
	files, err := filepath.Glob("testdata/mountinfo/*.mountinfo")
	if err != nil || len(files) == 0 {
		t.Fatalf("no mount tables: %v", err)
	}
	for _, file := range files {
		if !tested[filepath.Base(file)] {
			t.Errorf("%s has no expectations", file)
		}
	}
}

// everyFilesystemIsAPartition checks that no mount hides another: each 9p and
// virtiofs filesystem of the table (a device number) has a partition.
func everyFilesystemIsAPartition(t *testing.T, mounts []*mount.Info, info *fs.RealFsInfo) {
	t.Helper()
	for _, mnt := range mounts {
		if mnt.FSType != "9p" && mnt.FSType != "virtiofs" {
			continue
		}
		if key := info.DeviceForDir(mnt.Mountpoint, uint(mnt.Major), uint(mnt.Minor)); key == "" {
			t.Errorf("the %s filesystem at %s is hidden", mnt.FSType, mnt.Mountpoint)
		}
	}
}

func withKubeletPlugins(t *testing.T) {
	fs.WithPlugins(t, btrfs.NewPlugin(), nfs.NewPlugin(), overlay.NewPlugin(), tmpfs.NewPlugin(), vfs.NewPlugin(), zfs.NewPlugin(),
		generic.New9PPlugin(), generic.NewFallbackPlugin())
}

func readMountinfo(t *testing.T, file string) []*mount.Info {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mounts, err := mount.GetMountsFromReader(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// withoutTmpfs drops the partitions that are keyed by their mount point.
func withoutTmpfs(partitions []string) []string {
	var rest []string
	for _, line := range partitions {
		if half := len(line) / 2; line[:half] != line[half+1:] {
			rest = append(rest, line)
		}
	}
	return rest
}

// The root's label must find the root's partition however the table is ordered,
// and take no other filesystem's place.
func TestRootLabel(t *testing.T) {
	withKubeletPlugins(t)
	root := mount.Info{Root: "/", Mountpoint: "/", Source: "none", FSType: "9p", Minor: 18}
	bind := mount.Info{Root: "/sub", Mountpoint: "/bind", Source: "none", FSType: "9p", Minor: 18}
	disk := mount.Info{Root: "/", Mountpoint: "/disk", Source: "none", FSType: "xfs", Major: 8, Minor: 1}
	xfsRoot := mount.Info{Root: "/", Mountpoint: "/", Source: "none", FSType: "xfs", Major: 8, Minor: 2}
	for _, test := range []struct {
		name   string
		mounts []*mount.Info
		root   string
		want   []string
	}{
		{"9p root after its bind mount", []*mount.Info{&bind, &root}, "none_0-18", []string{"none_0-18 /"}},
		{"9p root before its bind mount", []*mount.Info{&root, &bind}, "none_0-18", []string{"none_0-18 /"}},
		{"9p root and a disk without a name", []*mount.Info{&root, &disk}, "none_0-18", []string{"none /disk", "none_0-18 /"}},
		{"two disks without a name", []*mount.Info{&disk, &xfsRoot}, "none_8-2", []string{"none /disk", "none_8-2 /"}},
		{"tmpfs root", []*mount.Info{{Mountpoint: "/", Source: "tmpfs", FSType: "tmpfs", Minor: 30}}, "/", []string{"/ /"}},
		{"a root of no known type", []*mount.Info{{Mountpoint: "/", Source: "rootfs", FSType: "rootfs", Minor: 1}}, "rootfs", []string{"rootfs /"}},
	} {
		info := fs.NewForMounts(test.mounts)
		if diff := cmp.Diff(test.want, info.Reported()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		if got, err := info.GetDeviceForLabel(fs.LabelSystemRoot); got != test.root {
			t.Errorf("%s: the label names %q (%v), want %q", test.name, got, err, test.root)
		}
	}
}
