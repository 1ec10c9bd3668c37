package stats

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"k3s9p/test/node"
)

func TestStats(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Run("load", node.Web())
	pod := n.AwaitRunning("load")

	t.Run("filesystem", func(t *testing.T) { n.CheckFilesystem() })
	t.Run("node memory", func(t *testing.T) {
		var reported, used float64
		n.Await("a working set within 15 % of what /proc/meminfo says is used", 60*time.Second, func() bool {
			memory := n.Summary().Node.Memory
			if memory == nil || memory.WorkingSetBytes == nil {
				return false
			}
			reported, used = float64(*memory.WorkingSetBytes), usedMemory(t, n)
			return math.Abs(reported/used-1) <= 0.15
		})
		t.Logf("reported %.0f MB, used %.0f MB", reported/1e6, used/1e6)
	})
	t.Run("metrics", func(t *testing.T) {
		for path, names := range map[string][]string{
			"/metrics/cadvisor": {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_fs_limit_bytes", "machine_memory_bytes"},
			"/metrics/resource": {"node_cpu_usage_seconds_total", "node_memory_working_set_bytes", "container_memory_working_set_bytes"},
		} {
			text := n.Ask(path)
			for _, name := range names {
				if !strings.Contains(text, "\n"+name) {
					t.Errorf("%s has no %s", path, name)
				}
			}
		}
	})
	t.Run("memory follows a load", func(t *testing.T) {
		before := container(t, n)
		if _, err := n.HTTP(pod, "/hold?mib=100"); err != nil {
			t.Fatal(err)
		}
		n.Await("100 MiB more in the working set", 60*time.Second, func() bool {
			return memory(container(t, n)) >= memory(before)+90<<20
		})
	})
	t.Run("CPU follows a load", func(t *testing.T) {
		before := container(t, n)
		if _, err := n.HTTP(pod, "/burn?s=5"); err != nil {
			t.Fatal(err)
		}
		n.Await("4 s of CPU time more", 60*time.Second, func() bool {
			return cpu(container(t, n)) >= cpu(before)+4*uint64(time.Second)
		})
		if got := cpu(container(t, n)) - cpu(before); got > 8*uint64(time.Second) {
			t.Errorf("5 s of one processor are reported as %v", time.Duration(got))
		}
	})
}

// usedMemory is MemTotal - MemFree of the sandbox, in bytes.
func usedMemory(t *testing.T, n *node.Node) float64 {
	t.Helper()
	values := make(map[string]float64)
	for line := range strings.Lines(n.Read("/proc/meminfo")) {
		var name string
		var kib float64
		if _, err := fmt.Sscan(line, &name, &kib); err == nil {
			values[name] = kib * 1024
		}
	}
	if values["MemTotal:"] == 0 || values["MemFree:"] == 0 {
		t.Fatalf("/proc/meminfo: %v", values)
	}
	return values["MemTotal:"] - values["MemFree:"]
}

// container is the sample of the pod's only container.
func container(t *testing.T, n *node.Node) stats.ContainerStats {
	t.Helper()
	var found stats.ContainerStats
	n.Await("a sample of the container", 60*time.Second, func() bool {
		for _, pod := range n.Summary().Pods {
			for _, c := range pod.Containers {
				if pod.PodRef.Name == "load-"+node.Name && c.Name == "web" && memory(c) > 0 && cpu(c) > 0 {
					found = c
					return true
				}
			}
		}
		return false
	})
	return found
}

func memory(c stats.ContainerStats) uint64 {
	if c.Memory == nil || c.Memory.WorkingSetBytes == nil {
		return 0
	}
	return *c.Memory.WorkingSetBytes
}

func cpu(c stats.ContainerStats) uint64 {
	if c.CPU == nil || c.CPU.UsageCoreNanoSeconds == nil {
		return 0
	}
	return *c.CPU.UsageCoreNanoSeconds
}
