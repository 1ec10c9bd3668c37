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
	"strings"
	"testing"
	"time"

	"github.com/google/cadvisor/cache/memory"
	"github.com/google/cadvisor/fs"
	info "github.com/google/cadvisor/info/v1"
)

// twoFilesystems has one filesystem that samples report and one on demand.
type twoFilesystems struct {
	fs.FsInfo
	asked []string
}

func (f *twoFilesystems) GetDirFsDevice(dir string) (*fs.DeviceInfo, error) {
	if strings.HasPrefix(dir, "/share") {
		return &fs.DeviceInfo{Device: "share_0-40", Minor: 40}, nil
	}
	return &fs.DeviceInfo{Device: "/dev/vda", Major: 254}, nil
}

func (f *twoFilesystems) GetMountpointForDevice(device string) (string, error) {
	return map[string]string{"/dev/vda": "/", "share_0-40": "/share"}[device], nil
}

func (f *twoFilesystems) GetLabelsForDevice(string) ([]string, error) { return nil, nil }

func (f *twoFilesystems) GetFsInfoForPath(mountSet map[string]struct{}) ([]fs.Fs, error) {
	for mountpoint := range mountSet {
		f.asked = append(f.asked, mountpoint)
	}
	if _, ok := mountSet["/share"]; !ok {
		return nil, nil
	}
	return []fs.Fs{{DeviceInfo: fs.DeviceInfo{Device: "share_0-40", Minor: 40}, Capacity: 1000, Free: 600, Available: 500}}, nil
}

func TestDirFsInfoOnDemand(t *testing.T) {
	filesystems := &twoFilesystems{}
	m := &manager{fsInfo: filesystems, memoryCache: memory.New(time.Minute, nil)}
	sample := &info.ContainerStats{Timestamp: time.Now(), Filesystem: []info.FsStats{{Device: "/dev/vda", Limit: 2000, Usage: 500, Available: 1500}}}
	root := &info.ContainerInfo{ContainerReference: info.ContainerReference{Name: "/"}}
	if err := m.memoryCache.AddStats(root, sample); err != nil {
		t.Fatal(err)
	}

	got, err := m.GetDirFsInfo("/var/lib/kubelet")
	if err != nil || got.Capacity != 2000 || len(filesystems.asked) != 0 {
		t.Errorf("a filesystem of the sample: %+v, %v, asked about %v", got, err, filesystems.asked)
	}
	got, err = m.GetDirFsInfo("/share/kubelet")
	if err != nil {
		t.Fatal(err)
	}
	if got.Device != "share_0-40" || got.Mountpoint != "/share" || got.Capacity != 1000 || got.Usage != 400 || got.Available != 500 || got.Inodes != nil {
		t.Errorf("a filesystem on demand: %+v", got)
	}
	if _, err := m.getFsInfoOnDemand("gone_0-41", "/gone"); err == nil || !strings.Contains(err.Error(), `"gone_0-41"`) {
		t.Errorf("a filesystem that is gone: %v", err)
	}
}
