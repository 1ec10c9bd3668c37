package k3s

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
)

const (
	nodeName = "sandbox"
	data     = "/var/lib/rancher/k3s"
	// images without a registry.
	images = data + "/agent/images/"
)

// cluster is a sandbox with k3s in it.
type cluster struct {
	*gvisor.Sandbox
	t *testing.T
}

func (c *cluster) try(within time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), within)
	defer cancel()
	return c.Exec(ctx, args...)
}

// get reads an object, and reports whether there is one.
func (c *cluster) get(into any, args ...string) bool {
	output, err := c.try(time.Minute, append([]string{"k3s", "kubectl", "get", "-o", "json"}, args...)...)
	if err != nil {
		return false
	}
	_, output, _ = strings.Cut(output, "{") // what k3s logs comes first
	return json.Unmarshal([]byte("{"+output), into) == nil
}

func (c *cluster) ready() bool {
	var node corev1.Node
	if !c.get(&node, "node", nodeName) {
		return false
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

const pod = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [
  {"name": "web", "image": "k3s9p.local/web:1", "imagePullPolicy": "Never", "resources": {"limits": {"memory": "64Mi"}},
   "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}}]}}`

// open boots a sandbox with k3s, the sequence and images in it.
func open(t *testing.T) *cluster {
	return &cluster{gvisor.Start(t, gvisor.Options{Files: map[string]string{
		"/usr/local/bin/k3s": gvisor.Program(contract.K3s),
		sequence:             filepath.Join("..", "..", "hack", "start-k3s.sh"),
		images + "pause.tar": gvisor.Program(contract.PauseImage),
		images + "web.tar":   gvisor.Program(contract.WebImage),
		"/root/web.json":     "=" + pod,
	}}), t}
}

const sequence = "/root/start-k3s.sh"

// snapshotter is what the sequence is told: on 9p an old gVisor's overlayfs does not work.
func snapshotter() string {
	if gvisor.Old() {
		return "native"
	}
	return "overlayfs"
}

// start runs the sequence, or a change of it.
func (c *cluster) start(script, snapshotter string) *gvisor.Process {
	return c.Background("/usr/bin/env", "SNAPSHOTTER="+snapshotter, script, "--node-name="+nodeName, "--pause-image=k3s9p.local/pause:1", "--disable=coredns,local-storage,metrics-server")
}

// runPod makes the pod, once the cluster takes it.
func (c *cluster) runPod(k3s *gvisor.Process) {
	c.t.Helper()
	c.Await("the node to be Ready", 4*time.Minute, func() bool {
		if k3s.Ended() {
			c.t.Fatalf("k3s ended:\n%s", tail(k3s.Output()))
		}
		return c.ready()
	})
	c.Await("the service account", time.Minute, func() bool { return c.get(new(corev1.ServiceAccount), "serviceaccount", "default") })
	c.Must("k3s", "kubectl", "apply", "-f", "/root/web.json")
}

// The documented sequence ends in a node that is Ready, runs a pod on the pod network, and
// knows its filesystem and its memory.
func TestStart(t *testing.T) {
	c := open(t)
	start := time.Now()
	k3s := c.start(sequence, snapshotter())
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tail(k3s.Output()))
		}
	})
	c.runPod(k3s)
	t.Logf("Ready after %.1f s", time.Since(start).Seconds())

	t.Run("version", func(t *testing.T) {
		if version := c.Must("k3s", "--version"); !strings.Contains(version, ".k3s9p.") {
			t.Errorf("k3s --version says %q", version)
		}
		var node corev1.Node
		if !c.get(&node, "node", nodeName) || !strings.Contains(node.Status.NodeInfo.KubeletVersion, "+k3s1.k3s9p.") {
			t.Errorf("the kubelet's version is %q", node.Status.NodeInfo.KubeletVersion)
		}
	})
	t.Run("a pod", func(t *testing.T) {
		var p corev1.Pod
		c.Await("the pod to be ready", time.Minute, func() bool {
			return c.get(&p, "pod", "web") && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
		})
		if !strings.HasPrefix(p.Status.PodIP, "10.42.0.") {
			t.Errorf("the pod has the address %s", p.Status.PodIP)
		}
		if answer, err := c.try(time.Minute, "inside", "http", "GET", fmt.Sprintf("http://%s:8080/", p.Status.PodIP)); err != nil || strings.TrimSpace(answer) != "web" {
			t.Errorf("the pod answers %q, %v", answer, err)
		}
		if output := c.Must("k3s", "kubectl", "exec", "web", "--", "/web", "say", "hello"); !strings.HasSuffix(strings.TrimSpace(output), "hello") {
			t.Errorf("the program in the pod printed %q", output)
		}
		if output := c.Must("k3s", "ctr", "containers", "list"); !strings.Contains(output, "k3s9p.local/web:1") {
			t.Errorf("k3s ctr lists %q", output)
		}
	})
	t.Run("stats", func(t *testing.T) {
		type usage struct {
			CapacityBytes, WorkingSetBytes uint64
		}
		var summary struct {
			Node struct{ Fs, Memory usage }
		}
		c.Await("a sample", time.Minute, func() bool {
			output, err := c.try(time.Minute, "k3s", "kubectl", "get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/stats/summary")
			_, output, _ = strings.Cut(output, "{")
			return err == nil && json.Unmarshal([]byte("{"+output), &summary) == nil && summary.Node.Memory.WorkingSetBytes > 0 && summary.Node.Fs.CapacityBytes > 0
		})
		capacity := strings.TrimSpace(c.Must("stat", "--file-system", "--format=%b %S", "/"))
		var blocks, size uint64
		if _, err := fmt.Sscan(capacity, &blocks, &size); err != nil || summary.Node.Fs.CapacityBytes != blocks*size {
			t.Errorf("the filesystem has %d bytes by the kubelet, and %s by statfs, %v", summary.Node.Fs.CapacityBytes, capacity, err)
		}
	})
}

// Each fix is needed: with one of them left out of the sequence k3s, or a pod, shows the
// symptom of its blocker.
func TestFixes(t *testing.T) {
	c := open(t)
	for _, without := range []struct {
		blocker string
		line    string // what is in the lines that are left out; none for the snapshotter
		pod     bool   // it is a pod that meets it
	}{
		{blocker: "kmsg", line: "/dev/kmsg"},
		{blocker: "cgroup-v1", line: "fail-cgroupv1=false"},
		{blocker: "overlayfs"},
		{blocker: "unprivileged-ports", line: "enable_unprivileged", pod: true},
	} {
		switch {
		case without.blocker == "overlayfs" && !gvisor.Old():
			continue // it works there
		case without.blocker == "unprivileged-ports" && gvisor.Old():
			continue // it calls itself Linux 4.4, of which k3s expects no such ports (pkg/agent/containerd)
		}
		t.Run(without.blocker, func(t *testing.T) {
			b, err := blocker.Find(without.blocker)
			if err != nil {
				t.Fatal(err)
			}
			script, uses := sequence, "overlayfs"
			if without.line != "" {
				script, uses = "/root/without.sh", snapshotter()
				c.leaveOut(t, without.line, script)
			}
			k3s := c.start(script, uses)
			defer func() {
				k3s.Stop()
				c.Must("ip", "link", "delete", "cni0")
			}()
			if without.pod {
				c.runPod(k3s)
			}
			var seen string
			c.Await("the symptom of "+b.ID, 2*time.Minute, func() bool {
				ended := k3s.Ended()
				seen = b.Symptom.In(k3s.Output())
				return seen != "" || ended
			})
			if seen == "" {
				t.Fatalf("k3s does not end with %q but with\n%s", b.Symptom, tail(k3s.Output()))
			}
			t.Log(seen)
		})
	}
}

// leaveOut writes the sequence without some of its lines.
func (c *cluster) leaveOut(t *testing.T, text, script string) {
	t.Helper()
	lines := strings.Split(c.Read(sequence), "\n")
	left := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return strings.Contains(line, text) && !strings.HasPrefix(line, "#")
	})
	if len(left) == len(lines) {
		t.Fatalf("no line of the sequence has %q", text)
	}
	c.Write(script, strings.Join(left, "\n"))
	c.Must("chmod", "+x", script)
}

// tail is the end of a log.
func tail(log string) string {
	lines := strings.Split(log, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
