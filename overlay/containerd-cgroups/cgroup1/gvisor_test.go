/*
   Copyright The containerd Authors.

   Licensed under the Apache License, Version 2.0 (the "License");
   you may not use this file except in compliance with the License.
   You may obtain a copy of the License at

       http://www.apache.org/licenses/LICENSE-2.0

   Unless required by applicable law or agreed to in writing, software
   distributed under the License is distributed on an "AS IS" BASIS,
   WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
   See the License for the specific language governing permissions and
   limitations under the License.
*/

package cgroup1

import (
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"google.golang.org/protobuf/proto"
)

// gVisorFiles is what a cgroup other than the root has in gVisor (160fafc42237),
// by controller: all files but cgroup.procs and tasks. gVisor's other controller,
// job, is unknown here. The source is each controller's AddControlFiles in
// https://github.com/google/gvisor/tree/master/pkg/sentry/fsimpl/cgroupfs.
var gVisorFiles = map[Name]map[string]string{
	Cpu: {
		"cpu.cfs_period_us": "100000\n",
		"cpu.cfs_quota_us":  "-1\n",
		"cpu.shares":        "1024\n",
	},
	Cpuacct: {
		"cpuacct.stat":       "user 250\nsystem 100\n",
		"cpuacct.usage":      "3500000000\n",
		"cpuacct.usage_sys":  "1000000000\n",
		"cpuacct.usage_user": "2500000000\n",
	},
	Cpuset: {
		"cpuset.cpus": "0-1\n",
		"cpuset.mems": "0\n",
	},
	Devices: {
		"devices.allow": "",
		"devices.deny":  "",
		"devices.list":  "a *:* rwm\n",
	},
	Memory: {
		"memory.limit_in_bytes":           "134217728\n",
		"memory.move_charge_at_immigrate": "0\n",
		"memory.pressure_level":           "0\n",
		"memory.soft_limit_in_bytes":      "9223372036854775807\n",
		"memory.usage_in_bytes":           "33554432\n",
	},
	Pids: {
		"pids.current": "7\n",
		"pids.max":     "max\n",
	},
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, defaultDirPerm); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), defaultFilePerm); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStatGVisor takes a sample as containerd's shim does.
func TestStatGVisor(t *testing.T) {
	root := t.TempDir()
	for name, files := range gVisorFiles {
		writeFiles(t, filepath.Join(root, string(name), "test"), files)
	}
	control, err := Load(StaticPath("test"), WithHierarchy(func() ([]Subsystem, error) {
		return defaults(root)
	}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := control.Stat(IgnoreNotExist)
	if err != nil {
		t.Fatal(err)
	}

	want := &v1.Metrics{
		CPU: &v1.CPUStat{
			Throttling: &v1.Throttle{},
			Usage: &v1.CPUUsage{
				Total:  3500000000,
				User:   250 * nanosecondsInSecond / clockTicks,
				Kernel: 100 * nanosecondsInSecond / clockTicks,
			},
		},
		Memory: &v1.MemoryStat{
			Usage:     &v1.MemoryEntry{Usage: 33554432, Limit: 134217728},
			Swap:      &v1.MemoryEntry{},
			Kernel:    &v1.MemoryEntry{},
			KernelTCP: &v1.MemoryEntry{},
		},
		Pids: &v1.PidsStat{Current: 7},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
