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
