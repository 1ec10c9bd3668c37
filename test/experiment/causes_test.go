package experiment

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"k3s9p/test/gvisor"
)

// cause is a kubelet with some of the patches, and what keeps it from starting.
type cause struct {
	ID      string `json:"id"`
	Patches string `json:"patches"`
	// Expected is a regular expression for the error, empty for a kubelet that starts.
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	Result   string `json:"result"` // reproduced, healthy or FAILED
	kubelet  string
}

var causes = []cause{
	{
		ID: "stock", Patches: "none", kubelet: "kube-stock",
		Expected: `failed to get rootfs info: unable to find data in memory cache`,
	},
	{
		ID: "cgroups", Patches: "opencontainers/cgroups", kubelet: "kube-cgroups",
		Expected: `failed to get rootfs info: cannot find filesystem info for device \\"none\\"`,
	},
	{
		ID: "cadvisor", Patches: "opencontainers/cgroups, cadvisor", kubelet: "kube-cadvisor",
		Expected: `Failed to start ContainerManager.*open /proc/sys/(vm/panic_on_oom|kernel/\S+): no such file or directory`,
	},
	{ID: "kubernetes", Patches: "opencontainers/cgroups, cadvisor, kubernetes", kubelet: "kube"},
}

// Each patch removes one cause, and the next one shows.
func TestOneCauseAtATime(t *testing.T) {
	gvisor.Require(t)
	for i := range causes {
		t.Run(causes[i].ID, func(t *testing.T) {
			c := &causes[i]
			c.Result = "FAILED"
			node := start(t, gvisor.NinePRoot, c.kubelet)
			if c.Expected == "" {
				node.awaitHealthy()
				c.Seen, c.Result = "ok", "healthy"
				node.checkFilesystem(true)
				return
			}
			node.sandbox.Await("the end of the kubelet", 60*time.Second, node.kubelet.Ended)
			c.Seen = regexp.MustCompile(c.Expected).FindString(node.kubelet.Output())
			if c.Seen == "" {
				t.Fatalf("the kubelet ended without the error %q:\n%s", c.Expected, tail(node.kubelet.Output()))
			}
			c.Result = "reproduced"
		})
	}
	writeReport(t)
}

// gVisor's default root is an overlay, which has no inode table.
func TestOverlayRoot(t *testing.T) {
	node := start(t, gvisor.OverlayRoot, "kube")
	node.awaitHealthy()
	node.checkFilesystem(false)
}

// node is a sandbox with containerd and a kubelet that has no apiserver.
type node struct {
	t       *testing.T
	sandbox *gvisor.Sandbox
	kubelet *gvisor.Process
}

const kubeletConfig = `=apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
readOnlyPort: 10255
failSwapOn: false
resolvConf: ""
`

func start(t *testing.T, root gvisor.Root, kubelet string) *node {
	t.Helper()
	sandbox := gvisor.Start(t, root, map[string]string{
		"/bin/kubelet":                 gvisor.Program(kubelet),
		"/bin/containerd":              gvisor.Program("containerd"),
		"/bin/containerd-shim-runc-v2": gvisor.Program("containerd-shim-runc-v2"),
		"/bin/runc":                    gvisor.Program("runc"),
		"/kubelet.yaml":                kubeletConfig,
		"/etc/hosts":                   "=127.0.0.1 localhost sandbox\n",
		"/etc/passwd":                  "=root:x:0:0:root:/root:/bin/false\n",
		"/etc/group":                   "=root:x:0:\n",
	})
	// The blocker before all these: the kubelet's OOM watcher opens /dev/kmsg.
	sandbox.Must("/inside", "link", "/dev/null", "/dev/kmsg")
	containerd := sandbox.Background("/bin/containerd")
	sandbox.Await("the start of containerd", 30*time.Second, func() bool {
		if containerd.Ended() {
			t.Fatalf("containerd ended:\n%s", tail(containerd.Output()))
		}
		return strings.Contains(containerd.Output(), "containerd successfully booted")
	})
	return &node{t: t, sandbox: sandbox, kubelet: sandbox.Background("/bin/kubelet", "--config=/kubelet.yaml", "--hostname-override=sandbox")}
}

func (n *node) awaitHealthy() {
	n.t.Helper()
	n.sandbox.Await("a healthy kubelet", 60*time.Second, func() bool {
		if n.kubelet.Ended() {
			n.t.Fatalf("the kubelet ended:\n%s", tail(n.kubelet.Output()))
		}
		answer, err := n.sandbox.Exec(n.t.Context(), "/inside", "get", "http://127.0.0.1:10248/healthz")
		return err == nil && answer == "ok"
	})
}

// checkFilesystem compares what the kubelet reports of the node's filesystem with
// statfs("/") in the sandbox.
func (n *node) checkFilesystem(inodes bool) {
	n.t.Helper()
	var summary struct {
		Node struct {
			Memory struct{ WorkingSetBytes uint64 }
			FS     struct {
				CapacityBytes, AvailableBytes uint64
				Inodes, InodesFree            *uint64
			}
		}
	}
	n.sandbox.Await("a sample of the node's filesystem", 60*time.Second, func() bool {
		answer, err := n.sandbox.Exec(n.t.Context(), "/inside", "get", "http://127.0.0.1:10255/stats/summary")
		return err == nil && json.Unmarshal([]byte(answer), &summary) == nil && summary.Node.FS.CapacityBytes > 0
	})
	var fsType int64
	var capacity, free, available, files, filesFree uint64
	if _, err := fmt.Sscan(n.sandbox.Must("/inside", "statfs", "/"), &fsType, &capacity, &free, &available, &files, &filesFree); err != nil {
		n.t.Fatal(err)
	}
	fs := summary.Node.FS
	if fs.CapacityBytes != capacity {
		n.t.Errorf("the node's filesystem has %d bytes, statfs says %d", fs.CapacityBytes, capacity)
	}
	// The disk is the host's, and others use it meanwhile.
	if diff := int64(fs.AvailableBytes - available); diff > 4<<30 || diff < -4<<30 {
		n.t.Errorf("%d bytes are available, statfs says %d", fs.AvailableBytes, available)
	}
	switch {
	case !inodes && fs.Inodes != nil:
		n.t.Errorf("%d inodes are reported of a filesystem without an inode table (statfs: %d)", *fs.Inodes, files)
	case inodes && (fs.Inodes == nil || *fs.Inodes != files || fs.InodesFree == nil):
		n.t.Errorf("the inodes are reported as %v, statfs says %d", fs.Inodes, files)
	}
	if summary.Node.Memory.WorkingSetBytes == 0 {
		n.t.Error("the node's working set is 0")
	}
}

func writeReport(t *testing.T) {
	t.Helper()
	data, err := json.MarshalIndent(causes, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("..", "..", "dist", "reports")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "experiment.json"), append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range causes {
		t.Logf("%-45s %-10s %s", c.Patches, c.Result, c.Seen)
	}
}

func tail(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
