package native

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/proof/contract"
	"k3s9p/internal/rmtree"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

func TestNative(t *testing.T) {
	m := Start(t)
	images := t.TempDir()
	m.must(os.Link(gvisor.Program(contract.WebImage), filepath.Join(images, "web.tar")))
	before := places()
	began := time.Now()
	if output, err := m.K3s9p("up", "--detach", "--images="+images); err != nil {
		t.Fatalf("k3s9p up: %v\n%s", err, output)
	}
	t.Logf("Ready after %.1f s", time.Since(began).Seconds())
	manifest := filepath.Join(images, "web.json")
	m.must(os.WriteFile(manifest, []byte(cluster.Web(3, "")), 0o644))
	m.Kubectl("apply", "-f", manifest)
	m.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	var pods corev1.PodList
	m.must(json.Unmarshal([]byte(m.Kubectl("get", "pods", "-o", "json")), &pods))
	if len(pods.Items) != 3 {
		t.Fatalf("%d pods run", len(pods.Items))
	}
	server := m.serve()
	defer server.Close()
	for _, pod := range pods.Items {
		output := m.get("http://" + pod.Status.PodIP + ":8080/get?url=http://" + gvisor.OutsideAddress + ":8080/")
		// The server outside sees the node's address, not the pod's.
		if output != gvisor.Address {
			t.Errorf("to the outside the pod %s is %q", pod.Name, output)
		}
	}
	during := places()
	for _, trace := range []string{"/sys/fs/cgroup/memory/k3s9p", "/run/containerd", "/var/lib/cni"} {
		if !strings.Contains(before, trace) && !strings.Contains(during, trace) {
			t.Errorf("there is no %s to be left: the comparison would prove nothing", trace)
		}
	}
	if output, err := m.K3s9p("down"); err != nil {
		t.Fatalf("k3s9p down: %v\n%s", err, output)
	}
	if after := places(); after != before {
		t.Errorf("the machine has\n%s\nand had\n%s", after, before)
	}
}

// serve answers outside with the address that a client has.
func (m *Machine) serve() *http.Server {
	m.t.Helper()
	var listener net.Listener
	m.must(m.Outside(func() (err error) {
		listener, err = net.Listen("tcp", gvisor.OutsideAddress+":8080")
		return err
	}))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host)
	})}
	go func() { _ = server.Serve(listener) }()
	return server
}

// get asks from the node.
func (m *Machine) get(url string) string {
	m.t.Helper()
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = gvisor.Within(m.inside, func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		}}}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	m.must(err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	m.must(err)
	return string(data)
}

// places lists what a node could leave on this machine: directories that programs
// have built in, cgroups, mounts.
func places() string {
	var there []string
	for _, pattern := range []string{"/run/containerd*", "/run/netns/*", "/var/lib/kubelet*", "/var/lib/cni*", "/var/log/pods*", "/var/log/containers*",
		"/etc/cni/*", "/opt/cni/*", "/opt/containerd*", "/sys/fs/cgroup/*/k3s9p*", "/sys/fs/cgroup/k3s9p*", "/sys/fs/cgroup/*/kubepods*"} {
		found, _ := filepath.Glob(pattern)
		there = append(there, found...)
	}
	mounts, _ := rmtree.Mounts("/")
	return strings.Join(append(there, mounts...), "\n")
}
