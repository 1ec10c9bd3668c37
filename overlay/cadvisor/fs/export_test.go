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
