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

// Package generic reports the filesystems that no other plugin names, by
// statfs(2).
//
// It holds two plugins. The one for 9p takes that type by name: it is the root
// filesystem of gVisor sandboxes and of virtual machines that share a directory
// of their host. The fallback takes every other type at the lowest priority
// (virtiofs, fuse.*, bcachefs, ceph, cifs, vboxsf, drvfs, …), except the types
// that exist only in the kernel and hold no data.
//
// # Which mounts are in every sample, and which are not
//
// In every sample (GetGlobalFsInfo): all 9p mounts; the root filesystem,
// whatever its type; and filesystems on a local block device (a source under
// /dev). These are where a node keeps its data.
//
// On demand, when a path on them is asked about: all other mounts of the
// fallback. Their numbers come from a server across the network or from a
// process of some user, so asking costs a round trip and may hang, and a node
// can have hundreds of them that are no concern of its own: volumes of pods,
// home directories. Before there were plugins cAdvisor did not list them either.
//
// A filesystem without blocks is a pseudo filesystem, and never reported.
package generic

import (
	"strings"

	mount "github.com/moby/sys/mountinfo"
	"k8s.io/klog/v2"

	"github.com/google/cadvisor/fs"
	"github.com/google/cadvisor/utils/statfs"
)

// kernelOnly are the filesystem types with no storage behind them: interfaces of
// the kernel, and memory that reports no size. A type that is missing here is
// still recognised by having no blocks.
//
// Source: the file_system_type definitions of Linux 6.18 and
// pkg/sentry/fsimpl of gVisor.
var kernelOnly = map[string]struct{}{
	"anon_inodefs": {}, "autofs": {}, "bdev": {}, "binder": {},
	"binfmt_misc": {}, "bpf": {}, "cgroup": {}, "cgroup2": {},
	"configfs": {}, "cpuset": {}, "debugfs": {}, "dev": {}, "devpts": {},
	"devtmpfs": {}, "efivarfs": {}, "functionfs": {}, "fusectl": {},
	"hugetlbfs": {}, "ipathfs": {}, "mqueue": {}, "nfsd": {},
	"nsfs": {}, "pidfs": {}, "pipefs": {}, "proc": {},
	"pstore": {}, "ramfs": {}, "resctrl": {}, "rootfs": {},
	"rpc_pipefs": {}, "securityfs": {}, "selinuxfs": {}, "smackfs": {},
	"sockfs": {}, "spufs": {}, "sysfs": {}, "tracefs": {},
	"xenfs": {},
}

// New9PPlugin creates the plugin for 9p.
func New9PPlugin() fs.FsPlugin {
	return ninep{}
}

// NewFallbackPlugin creates the plugin for the filesystems that no other plugin
// handles.
func NewFallbackPlugin() fs.FsPlugin {
	return fallback{}
}

type ninep struct{ byStatfs }

func (ninep) Name() string { return "9p" }

// CanHandle returns true for 9p, as Linux and gVisor name it.
func (ninep) CanHandle(fsType string) bool { return fsType == "9p" }

// Priority returns 100, as every plugin that takes a type by name.
func (ninep) Priority() int { return 100 }

// ProcessMount makes the source unique: it is a tag chosen by the host, the same
// for any number of mounts.
func (ninep) ProcessMount(mnt *mount.Info) (bool, *mount.Info, error) {
	return true, withUniqueSource(mnt), nil
}

type fallback struct{ byStatfs }

var _ fs.FsOnDemandPlugin = fallback{}

func (fallback) Name() string { return "statfs" }

// CanHandle returns true for every type that can hold data.
func (fallback) CanHandle(fsType string) bool {
	_, found := kernelOnly[fsType]
	return !found
}

// Priority returns a value below that of every other plugin, vfs (0) included.
func (fallback) Priority() int { return -100 }

// OnDemand returns true for mounts that are not on a local block device.
func (fallback) OnDemand(mnt *mount.Info) bool { return !onBlockDevice(mnt) }

// ProcessMount leaves out a filesystem that has no blocks, and makes the source
// unique unless it names a device. A mount on demand is not asked here: that
// waits until somebody wants to know.
func (p fallback) ProcessMount(mnt *mount.Info) (bool, *mount.Info, error) {
	if !onBlockDevice(mnt) {
		return true, withUniqueSource(mnt), nil
	}
	stats, err := statfs.Get(mnt.Mountpoint)
	if err == nil && stats.Capacity == 0 {
		klog.V(4).Infof("The %s filesystem at %q has no blocks: not a partition", mnt.FSType, mnt.Mountpoint)
		return false, nil, nil
	}
	return true, mnt, nil
}

// byStatfs is what both plugins report.
type byStatfs struct{}

// GetStats returns bytes and inodes as statfs(2) counts them, nil for a
// filesystem without blocks, and an error that wraps statfs.ErrNotAnswering for
// one that does not answer.
func (byStatfs) GetStats(_ string, partition fs.PartitionInfo) (*fs.FsStats, error) {
	stats, err := statfs.Get(partition.Mountpoint)
	if err != nil {
		return nil, err
	}
	if stats.Capacity == 0 {
		return nil, nil
	}
	return &fs.FsStats{
		Capacity:   stats.Capacity,
		Free:       stats.Free,
		Available:  stats.Available,
		Inodes:     &stats.Inodes,
		InodesFree: &stats.InodesFree,
		Type:       fs.VFS,
	}, nil
}

// onBlockDevice returns true for a source under /dev, also for a list of them
// (bcachefs: /dev/sda:/dev/sdb).
func onBlockDevice(mnt *mount.Info) bool {
	return strings.HasPrefix(mnt.Source, "/dev/")
}

func withUniqueSource(mnt *mount.Info) *mount.Info {
	unique := *mnt
	unique.Source = fs.UniqueSource(mnt)
	return &unique
}
