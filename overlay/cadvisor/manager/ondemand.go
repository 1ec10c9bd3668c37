//go:build linux

package manager

import (
	"fmt"
	"time"

	v2 "github.com/google/cadvisor/info/v2"
)

// getFsInfoOnDemand asks a filesystem that the samples of the root container
// leave out (see fs.FsOnDemandPlugin), now.
func (m *manager) getFsInfoOnDemand(deviceName, mountPoint string) (v2.FsInfo, error) {
	filesystems, err := m.fsInfo.GetFsInfoForPath(map[string]struct{}{mountPoint: {}})
	if err != nil {
		return v2.FsInfo{}, err
	}
	for _, fs := range filesystems {
		if fs.Device != deviceName {
			continue
		}
		labels, err := m.fsInfo.GetLabelsForDevice(fs.Device)
		if err != nil {
			return v2.FsInfo{}, err
		}
		return v2.FsInfo{
			Timestamp:  time.Now(),
			Device:     fs.Device,
			Mountpoint: mountPoint,
			Capacity:   fs.Capacity,
			Usage:      fs.Capacity - fs.Free,
			Available:  fs.Available,
			Labels:     labels,
			Inodes:     fs.Inodes,
			InodesFree: fs.InodesFree,
		}, nil
	}
	return v2.FsInfo{}, fmt.Errorf("cannot find filesystem info for device %q", deviceName)
}
