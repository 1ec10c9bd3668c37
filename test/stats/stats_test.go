package stats

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

// The root is on a disk of its own, which nobody else uses meanwhile.
var disk = gvisor.Options{DiskGiB: 16, AvailableMiB: 12 << 10}

func TestStats(t *testing.T) {
	n := node.Start(t, node.Options{Sandbox: disk})
	n.Run("load", node.Web())
	pod := n.AwaitRunning("load")

	t.Run("containerd", func(t *testing.T) {
		id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
		table := n.Must("ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io", "tasks", "metrics", id)
		numbers := make(map[string]float64)
		for line := range strings.Lines(table) {
			if fields := strings.Fields(line); len(fields) == 2 {
				numbers[fields[0]], _ = strconv.ParseFloat(fields[1], 64)
			}
		}
		for name, most := range map[string]float64{
			"memory.usage_in_bytes": meminfo(t, n)["MemTotal:"],
			"cpuacct.usage":         float64(processors(t, n)) * uptime(t, n) * float64(time.Second),
		} {
			if got := numbers[name]; got <= 0 || got > most {
				t.Errorf("the shim says that %s of the container is %v, of at most %v:\n%s", name, got, most, table)
			}
		}
	})
	t.Run("filesystem", func(t *testing.T) {
		n.CheckFilesystem()
		available(t, n)
	})
	t.Run("node memory", func(t *testing.T) {
		memory := n.Summary().Node.Memory
		if memory == nil || memory.WorkingSetBytes == nil {
			t.Fatal("the kubelet reports no memory of the node")
		}
		near(t, "the node's working set against what /proc/meminfo says is used", float64(*memory.WorkingSetBytes), used(meminfo(t, n)), 0.15)
	})
	t.Run("metrics", func(t *testing.T) {
		// cAdvisor's first sample of a container may be of its first moment.
		const workingSet = "container_memory_working_set_bytes"
		running := now(t, n)
		var cadvisor string
		n.Await("cAdvisor's sample of the container, once it runs", 60*time.Second, func() bool {
			cadvisor = n.Ask(node.ReadOnly + "/metrics/cadvisor")
			found := samples(t, cadvisor, workingSet, `container="web"`)
			return len(found) == 1 && found[0].time > running
		})
		info, fs, now := meminfo(t, n), n.Statfs(), container(t, n)
		resource := n.Ask(node.ReadOnly + "/metrics/resource")
		near(t, "machine_memory_bytes", metric(t, cadvisor, "machine_memory_bytes"), info["MemTotal:"], 0)
		root, source := rootDevice(t, n)
		near(t, "container_fs_limit_bytes", metric(t, cadvisor, "container_fs_limit_bytes", `id="/"`, device(root)), float64(fs.Bytes), 0)
		if len(samples(t, cadvisor, "container_fs_limit_bytes", `id="/"`, device(source))) > 0 {
			t.Errorf("the filesystem of / is reported twice: as %s, and as %s", root, source)
		}
		near(t, workingSet+" of cAdvisor", metric(t, cadvisor, workingSet, `container="web"`), float64(memory(now)), 0.25)
		near(t, workingSet, metric(t, resource, workingSet, `container="web"`), float64(memory(now)), 0.25)
		near(t, "node_memory_working_set_bytes", metric(t, resource, "node_memory_working_set_bytes"), used(info), 0.15)
		// The processors of the sandbox cannot have worked longer than it has run.
		most := float64(processors(t, n)) * uptime(t, n)
		if got := metric(t, resource, "node_cpu_usage_seconds_total"); got <= 0 || got > most {
			t.Errorf("node_cpu_usage_seconds_total is %v, of at most %v", got, most)
		}
		if got := metric(t, cadvisor, "container_cpu_usage_seconds_total", `container="web"`); got <= 0 || got > most {
			t.Errorf("container_cpu_usage_seconds_total is %v, of at most %v", got, most)
		}
	})
	t.Run("memory follows a load", func(t *testing.T) {
		before := container(t, n)
		if _, err := n.HTTP(pod, "/hold?mib=100"); err != nil {
			t.Fatal(err)
		}
		after := sampleAfter(t, n, before)
		if more := int64(memory(after)) - int64(memory(before)); more < 90<<20 || more > 130<<20 {
			t.Errorf("100 MiB are reported as %d MiB more", more>>20)
		}
	})
	t.Run("CPU follows a load", func(t *testing.T) {
		before := container(t, n)
		if _, err := n.HTTP(pod, "/burn?s=5"); err != nil {
			t.Fatal(err)
		}
		after := sampleAfter(t, n, before)
		if more := time.Duration(cpu(after) - cpu(before)); more < 4*time.Second || more > 8*time.Second {
			t.Errorf("5 s of one processor are reported as %v more", more)
		}
	})
}

// available compares what is reported as available with what the machine saw of the same
// disk in the second of the sample and the next: exactly, up to what the node wrote in
// between.
func available(t *testing.T, n *node.Node) {
	stop := n.WatchDisk()
	watched := time.Now().Add(time.Second)
	var fs *stats.FsStats
	n.Await("a sample of the disk that is watched", 2*time.Minute, func() bool {
		fs = n.Summary().Node.Fs
		return fs.Time.After(watched) && time.Since(fs.Time.Time) > 2*time.Second
	})
	var low, high uint64
	for _, seen := range stop() {
		if after := seen.At.Sub(fs.Time.Time); after < 0 || after >= 2*time.Second {
			continue
		}
		if low == 0 || seen.Bytes < low {
			low = seen.Bytes
		}
		high = max(high, seen.Bytes)
	}
	if high-low > 4<<20 {
		t.Errorf("the disk is not quiet: %d to %d bytes were available within 2 s", low, high)
	}
	if got := *fs.AvailableBytes; low == 0 || got < low || got > high {
		t.Errorf("%d bytes are available, the machine saw %d to %d", got, low, high)
	}
	t.Logf("%d bytes are available, the machine saw %d to %d", *fs.AvailableBytes, low, high)
}

// near is an error unless a figure is what it should be, up to a part of it.
func near(t *testing.T, what string, got, want, part float64) {
	t.Helper()
	if math.Abs(got-want) > part*want {
		t.Errorf("%s is %.0f, and should be %.0f, give or take %.0f %%", what, got, want, 100*part)
	}
}

// metric is the value of the only sample of a name with some labels.
func metric(t *testing.T, text, name string, labels ...string) float64 {
	t.Helper()
	found := samples(t, text, name, labels...)
	if len(found) != 1 {
		t.Fatalf("%s with %v is there %d times", name, labels, len(found))
	}
	return found[0].value
}

// sample is a value, and when it was taken, in seconds since 1970; 0 if that is not said.
type sample struct {
	value float64
	time  int64
}

// samples are those of a name with some labels, in the text format of Prometheus.
func samples(t *testing.T, text, name string, labels ...string) (found []sample) {
	t.Helper()
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		set, values, _ := strings.Cut(rest, " ")
		if end := strings.LastIndex(rest, "}"); end >= 0 {
			set, values = rest[:end], rest[end+1:]
		}
		for _, label := range labels {
			ok = ok && strings.Contains(set, label)
		}
		if !ok {
			continue
		}
		fields := strings.Fields(values)
		value, err := strconv.ParseFloat(fields[0], 64)
		var milliseconds int64
		if err == nil && len(fields) > 1 {
			milliseconds, err = strconv.ParseInt(fields[1], 10, 64)
		}
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		found = append(found, sample{value, milliseconds / 1000})
	}
	return found
}

// meminfo is /proc/meminfo of the sandbox, in bytes.
func meminfo(t *testing.T, n *node.Node) map[string]float64 {
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
	return values
}

// rootDevice is how the root filesystem is called: gVisor names no device, so it is the
// source with the device's numbers, and not the source alone (docs/filesystems.md).
func rootDevice(t *testing.T, n *node.Node) (name, source string) {
	t.Helper()
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(n.Read("/proc/self/mountinfo")), mountinfo.SingleEntryFilter("/"))
	if err != nil || len(mounts) != 1 {
		t.Fatalf("the root in the mount table: %v, %v", mounts, err)
	}
	source = mounts[0].Source
	return fmt.Sprintf("%s_%d-%d", source, mounts[0].Major, mounts[0].Minor), source
}

func device(name string) string { return fmt.Sprintf("device=%q", name) }

func used(meminfo map[string]float64) float64 { return meminfo["MemTotal:"] - meminfo["MemFree:"] }

func processors(t *testing.T, n *node.Node) int {
	t.Helper()
	return strings.Count("\n"+n.Read("/proc/cpuinfo"), "\nprocessor")
}

// uptime of the sandbox, in seconds.
func uptime(t *testing.T, n *node.Node) float64 {
	t.Helper()
	var seconds float64
	if _, err := fmt.Sscan(n.Read("/proc/uptime"), &seconds); err != nil {
		t.Fatalf("/proc/uptime: %v", err)
	}
	return seconds
}

// container is the newest sample of the pod's only container.
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

// sampleAfter is the first sample of the container that was taken after now: whatever
// it says is the answer.
func sampleAfter(t *testing.T, n *node.Node, before stats.ContainerStats) stats.ContainerStats {
	t.Helper()
	loaded := now(t, n)
	after := before
	n.Await("a new sample of the container", 60*time.Second, func() bool {
		after = container(t, n)
		return after.CPU.Time.Unix() > loaded && after.Memory.Time.Unix() > loaded
	})
	return after
}

// now is the time in the sandbox, in seconds since 1970.
func now(t *testing.T, n *node.Node) int64 {
	t.Helper()
	seconds, err := strconv.ParseInt(strings.TrimSpace(n.Must("date", "+%s")), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return seconds
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
