package pods

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

// One node for all: each part says what it protects.
func TestPods(t *testing.T) {
	n := node.Start(t, node.Options{})
	before := traces(n)
	n.Run("a", node.Web())
	n.Run("b", node.Web())
	n.Run("host", hostNetwork())
	a, b := n.AwaitRunning("a"), n.AwaitRunning("b")
	n.AwaitRunning("host")

	t.Run("node to pod", func(t *testing.T) {
		answers(t, n, a, "/", "a-"+node.Name)
		answers(t, n, b, "/", "b-"+node.Name)
	})
	t.Run("pod to pod", func(t *testing.T) {
		answers(t, n, a, "/get?url="+url.QueryEscape("http://"+b.Status.PodIP+":8080/"), "b-"+node.Name)
	})
	t.Run("outside to a pod on the host network", func(t *testing.T) {
		n.Await("the server in the pod", time.Minute, func() bool {
			_, err := n.Exec(t.Context(), "inside", "http", "GET", "http://127.0.0.1:8081/")
			return err == nil
		})
		err := n.Outside(func() error {
			response, err := gvisor.Get("http://" + gvisor.Address + ":8081/")
			if err == nil && response != node.Name {
				err = fmt.Errorf("it answers %q", response)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("logs", func(t *testing.T) {
		// containerd copies what a container prints: it may serve before that is in the log.
		n.Await("what the pod has printed", 30*time.Second, func() bool {
			return strings.Contains(n.Ask(node.Serving+"/containerLogs/default/a-"+node.Name+"/web"), "serving on :8080")
		})
	})
	t.Run("exec", func(t *testing.T) {
		streams(t, n, "exec", "a", "&command=/web&command=echo")
	})
	t.Run("attach", func(t *testing.T) {
		n.Run("echo", echo())
		n.AwaitRunning("echo")
		streams(t, n, "attach", "echo", "")
	})
	t.Run("a failing liveness probe restarts", func(t *testing.T) {
		spec := node.Web()
		handler := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}
		// What makes the other probe fail is its answer: not that there is none yet, nor that
		// it takes its time.
		spec.Containers[0].StartupProbe = &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, FailureThreshold: 60}
		spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 30, FailureThreshold: 1}
		n.Run("probed", spec)
		n.AwaitRunning("probed")
		var pod *corev1.Pod
		n.Await("the end of the startup probe", time.Minute, func() bool {
			pod = n.Pod("probed")
			started := pod.Status.ContainerStatuses[0].Started
			return started != nil && *started
		})
		if count := pod.Status.ContainerStatuses[0].RestartCount; count != 0 {
			t.Fatalf("it was restarted %d times before the probe failed", count)
		}
		answers(t, n, pod, "/break", "")
		n.Await("a restart", time.Minute, func() bool {
			pod := n.Pod("probed")
			return pod != nil && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].RestartCount == 1
		})
		n.AwaitRunning("probed")
	})
	t.Run("deleted pods leave nothing", func(t *testing.T) {
		during := traces(n)
		for what := range before {
			if during[what] == before[what] {
				t.Errorf("%s: pods that run left no trace of it: the check is blind", what)
			}
		}
		for _, name := range []string{"a", "b", "host", "echo", "probed"} {
			n.Delete(name)
		}
		var after map[string]string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
			if after = traces(n); cmp.Equal(before, after) {
				return
			}
		}
		t.Errorf("before the pods, and after (-before +after):\n%s", cmp.Diff(before, after))
	})
}

// streams sends lines to a program in a pod that sends them back, and expects all.
func streams(t *testing.T, n *node.Node, way, pod, query string) {
	t.Helper()
	url := fmt.Sprintf("%s/%s/default/%s-%s/web?input=1&output=1&error=1%s", node.Serving, way, pod, node.Name, query)
	output := n.Must("sh", "-c", "yes line | head -n 20000 | inside stream '"+url+"' | sort | uniq --count")
	if got := strings.Fields(output); !slices.Equal(got, []string{"20000", "line"}) {
		t.Errorf("of 20000 lines came back: %s", output)
	}
}

// echo is a pod that prints what it reads, and ends when that does.
func echo() corev1.PodSpec {
	spec := node.Web()
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.Containers[0].Args, spec.Containers[0].Stdin, spec.Containers[0].StdinOnce = []string{"echo"}, true, true
	return spec
}

// traces are the places in which a pod can leave something.
func traces(n *node.Node) map[string]string {
	found := make(map[string]string)
	for what, script := range map[string]string{
		"veth devices":       "ip -o link | grep -c veth || true",
		"addresses":          "ls /var/lib/cni/networks/k3s9p 2>/dev/null | grep -c '^[0-9]*\\.' || true",
		"network namespaces": "ls -d /run/containerd/*/netns/* 2>/dev/null || true",
		"pod directories":    "ls /var/lib/kubelet/pods 2>/dev/null || true",
		"shims":              "ls /run/containerd/io.containerd.runtime.v2.task/k8s.io 2>/dev/null || true",
	} {
		found[what] = strings.TrimSpace(n.Must("sh", "-c", script))
	}
	for controller := range strings.FieldsSeq(n.Must("ls", "/sys/fs/cgroup")) {
		if controller == "job" { // gVisor's own, which runc does not know
			continue
		}
		script := fmt.Sprintf("ls -d /sys/fs/cgroup/%[1]s/kubepods/*/pod* /sys/fs/cgroup/%[1]s/kubepods/pod* 2>/dev/null || true", controller)
		found["cgroups of "+controller] = strings.TrimSpace(n.Must("sh", "-c", script))
	}
	return found
}

func answers(t *testing.T, n *node.Node, pod *corev1.Pod, path, want string) {
	t.Helper()
	if answer, err := n.HTTP(pod, path); err != nil || answer != want {
		t.Errorf("%s of pod %s answers %q, %v; want %q", path, pod.Name, answer, err, want)
	}
}

func hostNetwork() corev1.PodSpec {
	spec := node.Web()
	spec.HostNetwork = true
	spec.Containers[0].Args = []string{"serve", ":8081"}
	return spec
}
