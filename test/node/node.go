// Package node brings up a node without a control plane in a gVisor sandbox:
// containerd, a kubelet and static pods. The machine is prepared by package
// blocker, as it is for a user.
package node

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/test/gvisor"
)

// Options describe a node.
type Options struct {
	Sandbox gvisor.Options
	// Without lists blockers that are not fixed.
	Without []string
	// Programs replaces files of the sandbox by other ones of test:sandbox, such as
	// /usr/local/bin/kubelet by kube-stock.
	Programs map[string]string
	// Settings changes the choices from which package blocker starts.
	Settings func(*config.Settings)
}

// Node is a sandbox in which containerd runs, and a kubelet if it was started.
type Node struct {
	*gvisor.Sandbox
	Containerd, Kubelet *gvisor.Process

	t        *testing.T
	settings config.Settings
	without  []string
}

// Name of the node.
const Name = "sandbox"

const (
	manifests = "/etc/k3s9p/pods"
	readOnly  = "http://127.0.0.1:10255"
	// Serving is the kubelet's own API.
	Serving = "https://127.0.0.1:10250"
)

// Where the programs are in the sandbox, and the files of test:sandbox that they
// are copies of.
var programs = map[string]string{
	"/usr/local/bin/kubelet":                 "kube",
	"/usr/local/bin/containerd":              "containerd",
	"/usr/local/bin/containerd-shim-runc-v2": "containerd-shim-runc-v2",
	"/usr/local/bin/ctr":                     "ctr",
	"/usr/local/bin/runc":                    "runc",
	"/usr/local/lib/cni/bridge":              "bridge",
	"/usr/local/lib/cni/ptp":                 "ptp",
	"/usr/local/lib/cni/loopback":            "loopback",
	"/usr/local/lib/cni/host-local":          "host-local",
	"/images/pause.tar":                      "pause.tar",
	"/images/web.tar":                        "web.tar",
}

// Prepare boots a sandbox with the programs, fixes what is to be fixed and writes
// the configuration.
func Prepare(t *testing.T, options Options) *Node {
	t.Helper()
	gvisor.Require(t)
	from := maps.Clone(programs)
	maps.Copy(from, options.Programs)
	files := map[string]string{manifests + "/.keep": "="}
	for path, name := range from {
		files[path] = gvisor.Program(name)
	}
	maps.Copy(files, options.Sandbox.Files)
	options.Sandbox.Files = files
	n := &Node{t: t, Sandbox: gvisor.Start(t, options.Sandbox), settings: config.Default(), without: options.Without}
	n.settings.Kubelet.StaticPods, n.settings.Kubelet.Standalone = manifests, true
	if options.Settings != nil {
		options.Settings(&n.settings)
	}
	n.fix(options.Without)
	return n
}

// Start prepares a node and starts containerd, with the images, and the kubelet.
func Start(t *testing.T, options Options) *Node {
	t.Helper()
	n := Prepare(t, options)
	n.StartContainerd()
	n.StartKubelet()
	n.AwaitHealthy()
	return n
}

// Check returns the findings of the blockers in the sandbox.
func (n *Node) Check() map[string]blocker.Finding {
	n.t.Helper()
	return n.findings(n.Must("inside", "check", n.asJSON()))
}

func (n *Node) findings(output string) map[string]blocker.Finding {
	n.t.Helper()
	var list []blocker.Finding
	if err := json.Unmarshal([]byte(output), &list); err != nil {
		n.t.Fatalf("the findings %q: %v", output, err)
	}
	found := make(map[string]blocker.Finding)
	for _, finding := range list {
		found[finding.ID] = finding
	}
	return found
}

func (n *Node) asJSON() string {
	n.t.Helper()
	data, err := json.Marshal(n.settings)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(data)
}

func (n *Node) fix(without []string) map[string]blocker.Finding {
	n.t.Helper()
	n.without = without
	return n.findings(n.Must("inside", "fix", n.asJSON(), strings.Join(without, ",")))
}

// Fix also fixes what was left, and returns what it found.
func (n *Node) Fix() map[string]blocker.Finding {
	n.t.Helper()
	return n.fix(nil)
}

// FixOne also fixes one of the blockers that were left.
func (n *Node) FixOne(id string) blocker.Finding {
	n.t.Helper()
	var left []string
	for _, other := range n.without {
		if other != id {
			left = append(left, other)
		}
	}
	return n.fix(left)[id]
}

// StartContainerd starts containerd and imports the images.
func (n *Node) StartContainerd() {
	n.t.Helper()
	n.Containerd = n.Background("/usr/local/bin/containerd", "--config=/etc/k3s9p/containerd.toml")
	n.Await("the start of containerd", 30*time.Second, func() bool {
		if n.Containerd.Ended() {
			n.t.Fatalf("containerd ended:\n%s", Tail(n.Containerd.Output()))
		}
		return strings.Contains(n.Containerd.Output(), "containerd successfully booted")
	})
	for _, image := range []string{"/images/pause.tar", "/images/web.tar"} {
		n.Must("ctr", "--namespace=k8s.io", "images", "import", "--local", "--snapshotter="+n.snapshotter(), image)
	}
}

func (n *Node) snapshotter() string {
	n.t.Helper()
	for line := range strings.Lines(n.Read("/etc/k3s9p/containerd.toml")) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " = "); ok && key == "snapshotter" {
			return strings.Trim(value, `'"`)
		}
	}
	n.t.Fatal("containerd.toml names no snapshotter")
	return ""
}

// StartKubelet starts the kubelet.
func (n *Node) StartKubelet() {
	n.t.Helper()
	n.Kubelet = n.Background("/usr/local/bin/kubelet", "--config=/etc/k3s9p/kubelet.yaml", "--root-dir="+n.settings.Kubelet.RootDir, "--hostname-override="+Name)
}

// Restart stops and starts containerd and the kubelet, with the configuration as
// it is now.
func (n *Node) Restart() {
	n.t.Helper()
	if n.Kubelet != nil {
		n.Kubelet.Stop()
	}
	n.Containerd.Stop()
	n.StartContainerd()
	n.StartKubelet()
	n.AwaitHealthy()
}

// AwaitHealthy waits for the kubelet's /healthz.
func (n *Node) AwaitHealthy() {
	n.t.Helper()
	n.Await("a healthy kubelet", 60*time.Second, func() bool {
		if n.Kubelet.Ended() {
			n.t.Fatalf("the kubelet ended:\n%s", Tail(n.Kubelet.Output()))
		}
		answer, err := n.Exec(n.t.Context(), "inside", "http", "GET", "http://127.0.0.1:10248/healthz")
		return err == nil && answer == "ok"
	})
}

// Ask asks the kubelet's read-only port.
func (n *Node) Ask(path string) string {
	n.t.Helper()
	return n.Must("inside", "http", "GET", readOnly+path)
}

// Run makes a static pod. The kubelet knows it as NAME-sandbox.
func (n *Node) Run(name string, spec corev1.PodSpec) {
	n.t.Helper()
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if c.Name == "" {
			c.Name = "web"
		}
		c.Image, c.ImagePullPolicy = Image, corev1.PullNever
	}
	spec.TerminationGracePeriodSeconds = new(int64)
	*spec.TerminationGracePeriodSeconds = 1
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec:       spec,
	}
	data, err := json.Marshal(pod)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Write(manifests+"/"+name+".json", string(data))
}

// Image is what all containers run: see test/web.
const Image = "k3s9p.local/web:1"

// Web is the specification of a pod with one web server.
func Web() corev1.PodSpec { return corev1.PodSpec{Containers: []corev1.Container{{}}} }

// Delete removes a static pod and waits until the kubelet has forgotten it.
func (n *Node) Delete(name string) {
	n.t.Helper()
	n.Must("rm", manifests+"/"+name+".json")
	n.Await("the end of pod "+name, 60*time.Second, func() bool { return n.Pod(name) == nil })
}

// Pod returns a pod as the kubelet knows it, or nil.
func (n *Node) Pod(name string) *corev1.Pod {
	n.t.Helper()
	var list corev1.PodList
	if err := json.Unmarshal([]byte(n.Ask("/pods")), &list); err != nil {
		n.t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].Name == name+"-"+Name {
			return &list.Items[i]
		}
	}
	return nil
}

// AwaitRunning waits until all containers of a pod run, and returns the pod.
func (n *Node) AwaitRunning(name string) *corev1.Pod {
	n.t.Helper()
	var pod *corev1.Pod
	deadline := time.Now().Add(60 * time.Second)
	for ; ; time.Sleep(200 * time.Millisecond) {
		if pod = n.Pod(name); pod != nil && running(pod) {
			return pod
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("pod %s does not run: %s\nkubelet:\n%s", name, state(pod), Tail(n.Kubelet.Output()))
		}
	}
}

func running(pod *corev1.Pod) bool {
	statuses := pod.Status.ContainerStatuses
	for _, status := range statuses {
		if status.State.Running == nil {
			return false
		}
	}
	return len(statuses) == len(pod.Spec.Containers) && (pod.Spec.HostNetwork || pod.Status.PodIP != "")
}

func state(pod *corev1.Pod) string {
	if pod == nil {
		return "the kubelet does not know it"
	}
	data, err := json.Marshal(pod.Status)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// AwaitSymptom waits for a text in the logs of the kubelet and of containerd, and
// returns it with the rest of its line.
func (n *Node) AwaitSymptom(symptom blocker.Symptom, within time.Duration) string {
	n.t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(200 * time.Millisecond) {
		for _, p := range []*gvisor.Process{n.Kubelet, n.Containerd} {
			if seen := symptom.In(p.Output()); seen != "" {
				return seen
			}
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%q was not seen within %v; kubelet:\n%s\ncontainerd:\n%s", symptom, within, Tail(n.Kubelet.Output()), Tail(n.Containerd.Output()))
		}
	}
}

// HTTP asks a web server in a pod, from the node.
func (n *Node) HTTP(pod *corev1.Pod, path string) (string, error) {
	return n.Exec(n.t.Context(), "inside", "http", "GET", fmt.Sprintf("http://%s:8080%s", pod.Status.PodIP, path))
}

// Tail is the end of a log.
func Tail(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
