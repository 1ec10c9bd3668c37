package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
)

// Cluster is a sandbox into which k3s9p was copied, and nothing else of the
// project; and an image for the pods.
type Cluster struct {
	*gvisor.Sandbox
	t    *testing.T
	data string // the directory of the node's data
	// apart says that the node has namespaces of its own: nobody in the sandbox is on
	// its network.
	apart bool
}

// Program is where the user has put it.
const Program = "/root/k3s9p"

// Images is a directory with the image that the pods run.
const Images = "/root/images"

// Start boots a sandbox, with further files if the options name some. The cluster is
// not up yet.
func Start(t *testing.T, options gvisor.Options) *Cluster {
	t.Helper()
	gvisor.Require(t)
	files := map[string]string{Program: gvisor.Program(contract.Launcher)}
	maps.Copy(files, options.Files)
	options.Files = files
	return StartWithout(t, options)
}

// StartWithout does the same where the test itself puts Program into the sandbox.
func StartWithout(t *testing.T, options gvisor.Options) *Cluster {
	t.Helper()
	gvisor.Require(t)
	files := map[string]string{Images + "/web.tar": gvisor.Program(contract.WebImage)}
	maps.Copy(files, options.Files)
	options.Files = files
	data := Data
	if options.User != 0 {
		data = gvisor.Home + "/.local/share/k3s9p"
	}
	return &Cluster{gvisor.Start(t, options), t, data, options.Docker}
}

// Up types k3s9p up --detach, and returns how long it took.
func (c *Cluster) Up(args ...string) time.Duration {
	c.t.Helper()
	return c.bring("up", args...)
}

// Join types k3s9p join --detach, and returns how long it took.
func (c *Cluster) Join(args ...string) time.Duration {
	c.t.Helper()
	return c.bring("join", args...)
}

func (c *Cluster) bring(command string, args ...string) time.Duration {
	c.t.Helper()
	start := time.Now()
	output, err := c.Try(3*time.Minute, append([]string{Program, command, "--detach", "--images=" + Images}, args...)...)
	if err != nil {
		c.t.Fatalf("k3s9p %s: %v\n%s\n%s", command, err, output, c.logs())
	}
	took := time.Since(start)
	c.t.Logf("Ready after %.1f s\n%s", took.Seconds(), output)
	return took
}

// K3s9p runs it, and may fail.
func (c *Cluster) K3s9p(args ...string) (string, error) {
	return c.Try(2*time.Minute, append([]string{Program}, args...)...)
}

// Try runs a program that may fail.
func (c *Cluster) Try(within time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), within)
	defer cancel()
	return c.Exec(ctx, args...)
}

// logs are the ends of the logs of the node.
func (c *Cluster) logs() string {
	output, _ := c.Try(30*time.Second, "sh", "-c", "for l in "+c.data+"/log/*.log; do echo \"== $l\"; tail -n 12 $l; done")
	return output
}

// TryKubectl returns what kubectl prints on its standard output: on the other one it also
// complains of an API that does not answer just then, as that of metrics-server on a busy
// machine, and goes on. What waits has a shorter limit of its own, and says what it waited
// for.
func (c *Cluster) TryKubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Minute)
	defer cancel()
	return c.Output(ctx, append([]string{Program, "kubectl"}, args...)...)
}

// Kubectl has to succeed.
func (c *Cluster) Kubectl(args ...string) string {
	c.t.Helper()
	output, err := c.TryKubectl(args...)
	if err != nil {
		c.t.Fatalf("kubectl %v: %v\n%s\n%s", args, err, output, c.warnings())
	}
	return output
}

// warnings are the events that say what is wrong, such as why a pod does not start.
func (c *Cluster) warnings() string {
	output, _ := c.Try(30*time.Second, append([]string{Program, "kubectl"}, Warnings...)...)
	return output
}

// Warnings are the arguments of kubectl that list the events that say what is wrong.
var Warnings = []string{"get", "events", "--all-namespaces", "--field-selector=type=Warning"}

// Get reads an object or a list of them.
func (c *Cluster) Get(into any, args ...string) {
	c.t.Helper()
	output := c.Kubectl(append(append([]string{"get"}, args...), "-o", "json")...)
	if err := json.Unmarshal([]byte(output), into); err != nil {
		c.t.Fatalf("kubectl get %v: %v\n%s", args, err, output)
	}
}

// Apply makes objects of a YAML text.
func (c *Cluster) Apply(name, manifest string) {
	c.t.Helper()
	file := "/root/" + name + ".yaml"
	c.Write(file, manifest)
	c.Kubectl("apply", "-f", file)
}

// HTTP asks a web server from the node.
func (c *Cluster) HTTP(address, path string) (string, error) {
	return c.Try(2*time.Minute, "inside", "http", "GET", fmt.Sprintf("http://%s:8080%s", address, path))
}

// AskPod asks the web server in a pod, from the node, or by way of the apiserver where nobody
// in the sandbox reaches the pod network.
func (c *Cluster) AskPod(pod corev1.Pod, path string) (string, error) {
	if c.apart {
		return c.Try(2*time.Minute, Program, "kubectl", "get", "--raw", "/api/v1/namespaces/default/pods/"+pod.Name+":8080/proxy"+path)
	}
	return c.HTTP(pod.Status.PodIP, path)
}

// Pod is a pod of the namespace default.
func (c *Cluster) Pod(name string) (pod corev1.Pod) {
	c.t.Helper()
	c.Get(&pod, "pod", name)
	return pod
}
