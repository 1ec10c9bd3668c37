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

package fs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	mount "github.com/moby/sys/mountinfo"
)

// FsOnDemandPlugin is an optional interface for plugins of filesystems that are
// not worth a system call in every sample: GetGlobalFsInfo leaves them out, and
// they are answered when a path on them is asked about (GetDirFsDevice,
// GetMountpointForDevice, GetFsInfoForPath).
type FsOnDemandPlugin interface {
	FsPlugin

	// OnDemand returns true for a mount that GetGlobalFsInfo leaves out.
	OnDemand(mnt *mount.Info) bool
}

// splitOnDemand separates the mounts that every sample reports from the ones
// that are answered on demand. The root filesystem is always reported, whatever
// its type and wherever else it is mounted.
func splitOnDemand(mounts []*mount.Info) (reported, onDemand []*mount.Info) {
	root := slices.IndexFunc(mounts, func(mnt *mount.Info) bool { return mnt.Mountpoint == "/" })
	for _, mnt := range mounts {
		plugin, ok := GetPluginForFsType(mnt.FSType).(FsOnDemandPlugin)
		ofRoot := root >= 0 && mnt.Major == mounts[root].Major && mnt.Minor == mounts[root].Minor
		if ok && !ofRoot && plugin.OnDemand(mnt) {
			onDemand = append(onDemand, mnt)
		} else {
			reported = append(reported, mnt)
		}
	}
	return reported, onDemand
}

// UniqueSource returns a partition key for a mount whose source names no device:
// gVisor, for one, prints the source "none" for every mount. The device numbers
// tell filesystems apart and are the same for all bind mounts of one.
func UniqueSource(mnt *mount.Info) string {
	return fmt.Sprintf("%s_%d-%d", mnt.Source, mnt.Major, mnt.Minor)
}

// partitionKey returns the key that a labelled mount has among the partitions:
// the one under which a plugin put its filesystem there, otherwise its source,
// made unique where another filesystem has taken it. Sources under /dev name one
// filesystem whatever device numbers its mounts show (btrfs shows others per
// subvolume).
func (i *RealFsInfo) partitionKey(mnt *mount.Info) string {
	unique := UniqueSource(mnt)
	for _, key := range []string{unique, mnt.Mountpoint} {
		if p, ok := i.partitions[key]; ok && isOn(p, mnt) {
			return key
		}
	}
	if p, taken := i.partitions[mnt.Source]; taken && !isOn(p, mnt) && !strings.HasPrefix(mnt.Source, "/dev/") {
		return unique
	}
	return mnt.Source
}

// isOn returns true if mnt shows the filesystem of the partition.
func isOn(p partition, mnt *mount.Info) bool {
	return p.major == uint(mnt.Major) && p.minor == uint(mnt.Minor)
}

// partitionsFor returns the partitions among which GetFsInfoForPath looks:
// those of every sample, and the ones on demand when mount points are named.
func (i *RealFsInfo) partitionsFor(mountSet map[string]struct{}) map[string]partition {
	if mountSet == nil || len(i.onDemand) == 0 {
		return i.partitions
	}
	all := maps.Clone(i.onDemand)
	maps.Copy(all, i.partitions)
	return all
}

// partitionByDevice finds the partition with the given device numbers. Where
// several have them, as tmpfs mounts bound to a second place, the one that is
// mounted deepest above dir is taken.
func (i *RealFsInfo) partitionByDevice(dir string, major, minor uint) (string, bool) {
	best, bestDepth := "", -1
	for _, partitions := range []map[string]partition{i.partitions, i.onDemand} {
		for key, p := range partitions {
			if p.major != major || p.minor != minor {
				continue
			}
			depth := 0
			if isBelow(dir, p.mountpoint) {
				depth = len(p.mountpoint)
			}
			if depth > bestDepth || depth == bestDepth && key < best {
				best, bestDepth = key, depth
			}
		}
		if bestDepth >= 0 {
			return best, true
		}
	}
	return "", false
}

// partitionByMount finds the partition of the filesystem that mnt shows.
func (i *RealFsInfo) partitionByMount(mnt *mount.Info) (string, bool) {
	for _, partitions := range []map[string]partition{i.partitions, i.onDemand} {
		for key, p := range partitions {
			if p.mountpoint == mnt.Mountpoint && p.fsType == mnt.FSType {
				return key, true
			}
		}
	}
	return i.partitionByDevice(mnt.Mountpoint, uint(mnt.Major), uint(mnt.Minor))
}

// hasStorage returns false for a filesystem on demand that turns out to have no
// blocks: it is a pseudo filesystem of a type that nobody knows by name.
func (i *RealFsInfo) hasStorage(key string) bool {
	p, ok := i.onDemand[key]
	if !ok {
		return true
	}
	stats, err := GetPluginForFsType(p.fsType).GetStats(key, PartitionInfo{
		Mountpoint: p.mountpoint,
		Major:      p.major,
		Minor:      p.minor,
		FsType:     p.fsType,
		BlockSize:  p.blockSize,
	})
	return err != nil || stats != nil
}

// isBelow returns true if dir is mountpoint or lies beneath it.
func isBelow(dir, mountpoint string) bool {
	rest, ok := strings.CutPrefix(dir, strings.TrimSuffix(mountpoint, "/"))
	return ok && (rest == "" || rest[0] == '/')
}
