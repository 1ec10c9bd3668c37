package fs

import (
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
)

// gVisorFiles is what a cgroup other than the root has in gVisor (160fafc42237),
// by controller: all files but cgroup.procs and tasks. gVisor's other controller,
// job, is unknown here. The source is each controller's AddControlFiles in
// https://github.com/google/gvisor/tree/master/pkg/sentry/fsimpl/cgroupfs.
var gVisorFiles = map[string]map[string]string{
	"cpu": {
		"cpu.cfs_period_us": "100000\n",
		"cpu.cfs_quota_us":  "-1\n",
		"cpu.shares":        "1024\n",
	},
	"cpuacct": {
		"cpuacct.stat":       "user 250\nsystem 100\n",
		"cpuacct.usage":      "3500000000\n",
		"cpuacct.usage_sys":  "1000000000\n",
		"cpuacct.usage_user": "2500000000\n",
	},
	"cpuset": {
		"cpuset.cpus": "0-1\n",
		"cpuset.mems": "0\n",
	},
	"devices": {
		"devices.allow": "",
		"devices.deny":  "",
		"devices.list":  "a *:* rwm\n",
	},
	"memory": {
		"memory.limit_in_bytes":           "134217728\n",
		"memory.move_charge_at_immigrate": "0\n",
		"memory.pressure_level":           "0\n",
		"memory.soft_limit_in_bytes":      "9223372036854775807\n",
		"memory.usage_in_bytes":           "33554432\n",
	},
	"pids": {
		"pids.current": "7\n",
		"pids.max":     "max\n",
	},
}

func TestManagerGetStatsGVisor(t *testing.T) {
	paths := make(map[string]string)
	for subsystem, files := range gVisorFiles {
		paths[subsystem] = tempDir(t, subsystem)
		writeFileContents(t, paths[subsystem], files)
	}
	m, err := NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, paths)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.GetStats()
	if err != nil {
		t.Fatal(err)
	}

	want := cgroups.NewStats()
	want.CpuStats.CpuUsage = cgroups.CpuUsage{
		TotalUsage:              3500000000,
		PercpuUsage:             []uint64{},
		PercpuUsageInKernelmode: []uint64{},
		PercpuUsageInUsermode:   []uint64{},
		UsageInKernelmode:       1000000000,
		UsageInUsermode:         2500000000,
	}
	want.CPUSetStats.CPUs = []uint16{0, 1}
	want.CPUSetStats.Mems = []uint16{0}
	want.MemoryStats.Usage = cgroups.MemoryData{Usage: 33554432, Limit: 134217728}
	want.PidsStats.Current = 7
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}
