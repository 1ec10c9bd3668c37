// Package node brings up a node without a control plane in a gVisor sandbox:
// containerd, a kubelet and static pods. The machine is prepared by package
// blocker, and the programs started with what the package node of the product gives
// for it, as they are for a user.
package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	bringup "k3s9p/internal/node"
	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
	"k3s9p/test/gvisor/inside/fixed"
)

// Options describe a node.
type Options struct {
	Sandbox gvisor.Options
	// Without lists blockers that are not fixed.
	Without []string
	// Programs replaces files of the sandbox by other ones of test:sandbox, such as
	// /usr/local/bin/kubelet by contract.KubeStock.
	Programs map[string]string
	// Settings changes the choices from which package blocker starts.
	Settings func(*config.Settings)
}

// Node is a sandbox in which containerd runs, and a kubelet if it was started.
type Node struct {
	*gvisor.Sandbox
	Containerd, Kubelet *gvisor.Process

	t       *testing.T
	choices config.Settings // from which package blocker starts
	without []string
	machine fixed.Machine
	okSince time.Time // the kubelet; zero if its last answer was another one
}

// Name of the node.
const Name = "sandbox"

const (
	manifests = "/etc/k3s9p/pods"
	// ReadOnly is the kubelet's port that asks nobody who somebody is, and Serving its
	// own API.
	ReadOnly = "http://127.0.0.1:10255"
	Serving  = "https://127.0.0.1:10250"
)

// standalone are the kubelet's flags for static pods, and for answering anybody: there
// is no apiserver to ask who somebody is.
var standalone = []string{
	"--pod-manifest-path=" + manifests, "--file-check-frequency=1s",
	"--read-only-port=10255", "--anonymous-auth=true", "--authentication-token-webhook=false", "--authorization-mode=AlwaysAllow",
}

// Where the programs are in the sandbox, and the files of test:sandbox that they
// are copies of.
var programs = map[string]string{
	Kubelet:                                  contract.Kube,
	"/usr/local/bin/containerd":              "containerd",
	"/usr/local/bin/containerd-shim-runc-v2": "containerd-shim-runc-v2",
	"/usr/local/bin/ctr":                     "ctr",
	"/usr/local/bin/runc":                    contract.Runc,
	"/usr/local/lib/cni/bridge":              "bridge",
	"/usr/local/lib/cni/ptp":                 "ptp",
	"/usr/local/lib/cni/loopback":            "loopback",
	"/usr/local/lib/cni/host-local":          "host-local",
	"/images/pause.tar":                      contract.PauseImage,
	"/images/web.tar":                        contract.WebImage,
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
	n := &Node{t: t, Sandbox: gvisor.Start(t, options.Sandbox), choices: config.Default(), without: options.Without}
	if options.Settings != nil {
		options.Settings(&n.choices)
	}
	n.fix(options.Without)
	return n
}

// Start prepares a node and starts containerd, with the images, and the kubelet. That
// has answered when Start returns. It has to be healthy when a pod runs, when it is
// restarted and when the test ends: until then the scenario need not wait.
func Start(t *testing.T, options Options) *Node {
	t.Helper()
	n := Prepare(t, options)
	n.StartContainerd()
	n.StartKubelet()
	n.Await("an answer of the kubelet", 60*time.Second, n.ok)
	t.Cleanup(func() {
		switch {
		case !t.Failed():
			n.AwaitHealthy()
		case n.Kubelet.Ended(): // whoever asked it has only seen that nobody answers
			t.Logf("the kubelet ended:\n%s", Tail(n.Kubelet.Output()))
		}
	})
	return n
}

// Check returns the findings of the blockers in the sandbox.
func (n *Node) Check() map[string]blocker.Finding {
	n.t.Helper()
	var plan blocker.Plan
	n.inside(&plan, "plan", n.asJSON(n.choices))
	return byID(plan.Findings)
}

// inside asks the program in the sandbox, which answers in JSON.
func (n *Node) inside(answer any, args ...string) {
	n.t.Helper()
	output := n.Must(append([]string{"inside"}, args...)...)
	if err := json.Unmarshal([]byte(output), answer); err != nil {
		n.t.Fatalf("inside %s answers %q: %v", args[0], output, err)
	}
}

func byID(findings []blocker.Finding) map[string]blocker.Finding {
	found := make(map[string]blocker.Finding)
	for _, finding := range findings {
		found[finding.ID] = finding
	}
	return found
}

func (n *Node) asJSON(s config.Settings) string {
	n.t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(data)
}

func (n *Node) fix(without []string) map[string]blocker.Finding {
	n.t.Helper()
	n.without, n.machine = without, fixed.Machine{}
	n.inside(&n.machine, "fix", n.asJSON(n.choices), strings.Join(without, ","))
	return byID(n.machine.Plan.Findings)
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
	n.Containerd = n.Background(append([]string{"/usr/local/bin/containerd"}, bringup.ContainerdArgs(n.machine.Files)...)...)
	settings := n.asJSON(n.machine.Plan.Settings)
	n.Await("containerd's CRI service", 60*time.Second, func() bool {
		if n.Containerd.Ended() {
			n.t.Fatalf("containerd ended:\n%s", Tail(n.Containerd.Output()))
		}
		_, err := n.Exec(n.t.Context(), "inside", "cri-ready", settings)
		return err == nil
	})
	n.Must("inside", "import", settings, "/images/pause.tar", "/images/web.tar")
}

// Kubelet is where the node's kubelet is.
const Kubelet = "/usr/local/bin/kubelet"

// StartKubelet starts the kubelet.
func (n *Node) StartKubelet() {
	n.t.Helper()
	n.StartOther(Kubelet, "")
}

// StartOther starts another kubelet than the node's, with further arguments. Where
// there is a script for sh(1), it runs before: in a mount namespace of their own, so
// that what it mounts ends with the kubelet.
func (n *Node) StartOther(program, script string, args ...string) {
	n.t.Helper()
	n.okSince = time.Time{}
	args = slices.Concat([]string{program}, bringup.KubeletArgs(n.machine.Plan.Settings, n.machine.Files, Name), standalone, args)
	if script != "" {
		args = append([]string{"unshare", "--mount", "sh", "-c", script + ` && exec "$@"`, "sh"}, args...)
	}
	n.Kubelet = n.Background(args...)
}

// Config is the file of the kubelet's configuration.
func (n *Node) Config() string { return n.machine.Files.Kubelet }

// Network is the file of the pod network's configuration.
func (n *Node) Network() string { return n.machine.Files.Network }

// Restart stops and starts containerd and the kubelet, with the configuration as
// it is now.
func (n *Node) Restart() {
	n.t.Helper()
	if n.Kubelet != nil {
		n.AwaitHealthy()
		n.Kubelet.Stop()
	}
	n.Containerd.Stop()
	n.StartContainerd()
	n.StartKubelet()
	n.Await("an answer of the kubelet", 60*time.Second, n.ok)
}

// AwaitHealthy waits until the kubelet has answered ok twice, 2 s apart, and nothing
// else meanwhile: one that is about to end may still answer once.
func (n *Node) AwaitHealthy() {
	n.t.Helper()
	n.Await("a healthy kubelet", 60*time.Second, func() bool {
		asked := time.Now()
		return n.ok() && asked.Sub(n.okSince) >= 2*time.Second
	})
}

// ok asks the kubelet's /healthz, and notes since when that says ok. The process is
// the one that was started: nobody starts another one.
func (n *Node) ok() bool {
	n.t.Helper()
	// Not the test's context: that is over when the test is cleaned up.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer, err := n.Exec(ctx, "inside", "http", "GET", "http://127.0.0.1:10248/healthz")
	if n.Kubelet.Ended() {
		n.t.Fatalf("the kubelet ended:\n%s", Tail(n.Kubelet.Output()))
	}
	switch ok := err == nil && answer == "ok"; {
	case !ok:
		n.okSince = time.Time{}
	case n.okSince.IsZero():
		n.okSince = time.Now()
	}
	return !n.okSince.IsZero()
}

// Ask asks one of the kubelet's servers, which has to answer.
func (n *Node) Ask(url string) string {
	n.t.Helper()
	answer, err := n.answer(url)
	switch {
	case err == nil:
	case n.Kubelet.Ended():
		n.t.Fatalf("the kubelet ended:\n%s", Tail(n.Kubelet.Output()))
	default:
		n.t.Fatalf("the kubelet does not answer GET %s: %v\n%s\nkubelet:\n%s", url, err, answer, Tail(n.Kubelet.Output()))
	}
	return answer
}

// answer is what a URL answers once somebody listens there. A kubelet that answers
// elsewhere may not do so yet, because each of its servers starts on its own; nor may a
// program whose container runs.
func (n *Node) answer(url string) (string, error) {
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		answer, err := n.Exec(context.Background(), "inside", "http", "GET", url)
		if err == nil || !strings.Contains(answer, "connection refused") || n.Kubelet.Ended() || time.Now().After(deadline) {
			return answer, err
		}
	}
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
	if err := json.Unmarshal([]byte(n.Ask(ReadOnly+"/pods")), &list); err != nil {
		n.t.Fatal(err)
	}
	for i := range list.Items {
		if list.Items[i].Name == name+"-"+Name {
			return &list.Items[i]
		}
	}
	return nil
}

// AwaitRunning waits until all containers of a pod run, of a healthy kubelet, and
// returns the pod.
func (n *Node) AwaitRunning(name string) *corev1.Pod {
	n.t.Helper()
	var pod *corev1.Pod
	deadline := time.Now().Add(60 * time.Second)
	for ; ; time.Sleep(200 * time.Millisecond) {
		if pod = n.Pod(name); pod != nil && running(pod) {
			n.AwaitHealthy()
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
	return n.answer(fmt.Sprintf("http://%s:8080%s", pod.Status.PodIP, path))
}

// Tail is the end of a log.
func Tail(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
