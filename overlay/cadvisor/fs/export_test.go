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
	"maps"
	"slices"
	"testing"

	mount "github.com/moby/sys/mountinfo"
)

// WithPlugins makes the given plugins the only ones for the rest of the test.
func WithPlugins(t testing.TB, only ...FsPlugin) {
	before := plugins
	plugins = make(map[string]FsPlugin)
	t.Cleanup(func() { plugins = before })
	for _, plugin := range only {
		if err := RegisterPlugin(plugin.Name(), plugin); err != nil {
			t.Fatal(err)
		}
	}
}

// NewForMounts is NewFsInfo for a mount table that is not this machine's.
func NewForMounts(mounts []*mount.Info) *RealFsInfo {
	return newFsInfo(Context{}, mounts)
}

// Reported and OnDemand list the partitions as "key mountpoint".
func (i *RealFsInfo) Reported() []string { return list(i.partitions) }
func (i *RealFsInfo) OnDemand() []string { return list(i.onDemand) }

func list(partitions map[string]partition) []string {
	var lines []string
	for key, p := range partitions {
		lines = append(lines, key+" "+p.mountpoint)
	}
	return slices.Sorted(slices.Values(lines))
}

// DeviceForDir is GetDirFsDevice for a directory with the given device numbers.
func (i *RealFsInfo) DeviceForDir(dir string, major, minor uint) string {
	if key, ok := i.partitionByDevice(dir, major, minor); ok {
		return key
	}
	mnt, ok := i.mountInfoFromDir(dir)
	if !ok {
		return ""
	}
	key, _ := i.partitionByMount(mnt)
	return key
}

// Keys returns the keys of all partitions.
func (i *RealFsInfo) Keys() []string {
	return slices.Concat(slices.Collect(maps.Keys(i.partitions)), slices.Collect(maps.Keys(i.onDemand)))
}
