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
	"slices"
	"strconv"
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
	before, tables := m.places(), m.tables()
	began := time.Now()
	if output, err := m.lessCapable("up", "--detach", "--images="+images); err != nil {
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
	m.services(pods.Items)
	during := m.places()
	for _, trace := range []string{"/sys/fs/cgroup/memory/k3s9p", "/run/containerd", "/var/lib/cni"} {
		if !strings.Contains(before, trace) && !strings.Contains(during, trace) {
			t.Errorf("there is no %s to be left: the comparison would prove nothing", trace)
		}
	}
	if output, err := m.K3s9p("down"); err != nil {
		t.Fatalf("k3s9p down: %v\n%s", err, output)
	}
	if after := m.places(); after != before {
		t.Errorf("the machine has\n%s\nand had\n%s", after, before)
	}
	if after := m.tables(); after != tables {
		t.Errorf("netfilter has the tables\n%s\nand had\n%s", after, tables)
	}
}

// lessCapable runs k3s9p without CAP_SYS_RESOURCE, which root in a container lacks, and
// maybe here as well.
func (m *Machine) lessCapable(args ...string) (string, error) {
	return m.In(append([]string{"setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource",
		gvisor.Program(contract.Launcher), "--data-dir=" + m.Data}, args...)...)
}

// tables are those of nf_tables, where kube-proxy writes its rules.
func (m *Machine) tables() string {
	m.t.Helper()
	output, err := m.In("nft", "list", "tables")
	if err != nil {
		m.t.Fatalf("list the tables of netfilter: %v\n%s", err, output)
	}
	return output
}

// nodePort is the node's for the Service.
const nodePort = 30080

// services asks for a Service that kube-proxy serves, of three pods.
func (m *Machine) services(pods []corev1.Pod) {
	m.t.Helper()
	if tables := m.tables(); !strings.Contains(tables, "table ip kube-proxy") {
		m.t.Errorf("kube-proxy has written no rules: netfilter has\n%s", tables)
	}
	m.Kubectl("create", "service", "nodeport", "web", "--tcp=8080:8080", "--node-port="+strconv.Itoa(nodePort))
	var service corev1.Service
	m.must(json.Unmarshal([]byte(m.Kubectl("get", "service", "web", "-o", "json")), &service))
	names := make(map[string]bool)
	for _, pod := range pods {
		names[pod.Name] = true
	}
	var err error // rules follow a Service, within a second where nothing else is to be done
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err = m.ask(m.inside, "http://"+service.Spec.ClusterIP+":8080/"); err == nil {
			break
		}
	}
	m.must(err)
	byName, byAddress, atNode := "http://web:8080/", "http://"+service.Spec.ClusterIP+":8080/", fmt.Sprintf("http://%s:%d/", gvisor.Address, nodePort)
	fromPod := func(address string) string {
		return m.get("http://" + pods[0].Status.PodIP + ":8080/get?url=" + address)
	}
	for way, ask := range map[string]func() string{
		"from the node to " + byAddress: func() string { return m.get(byAddress) },
		"from a pod to " + byAddress:    func() string { return fromPod(byAddress) },
		"from a pod to " + byName:       func() string { return fromPod(byName) },
		"from outside to " + atNode:     func() string { return m.getFrom(m.outside, atNode) },
	} {
		answers := make(map[string]int)
		for deadline := time.Now().Add(20 * time.Second); len(answers) < len(pods) && time.Now().Before(deadline); {
			answers[ask()]++
		}
		for answer := range answers {
			if !names[answer] {
				m.t.Errorf("%s it answers %q", way, answer)
			}
		}
		if len(answers) != len(pods) {
			m.t.Errorf("%s %d of %d pods answer: %v", way, len(answers), len(pods), answers)
		}
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
func (m *Machine) get(url string) string { m.t.Helper(); return m.getFrom(m.inside, url) }

// getFrom asks from a network namespace, by a new connection.
func (m *Machine) getFrom(namespace, url string) string {
	m.t.Helper()
	answer, err := m.ask(namespace, url)
	m.must(err)
	return answer
}

func (m *Machine) ask(namespace, url string) (string, error) {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = gvisor.Within(namespace, func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		}}}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return string(data), err
}

// places lists what a node could leave on this machine: directories that programs
// have built in, cgroups, mounts; but not the mounts of sandboxes that others run.
func (m *Machine) places() string {
	var there []string
	for _, pattern := range []string{"/run/containerd*", "/run/netns/*", "/var/lib/kubelet*", "/var/lib/cni*", "/var/log/pods*", "/var/log/containers*",
		"/etc/cni/*", "/opt/cni/*", "/opt/containerd*", "/sys/fs/cgroup/*/k3s9p*", "/sys/fs/cgroup/k3s9p*", "/sys/fs/cgroup/*/kubepods*"} {
		found, _ := filepath.Glob(pattern)
		there = append(there, found...)
	}
	mounts, _ := rmtree.Mounts("/")
	mounts = slices.DeleteFunc(mounts, func(point string) bool {
		return strings.Contains(point, "/.work/") && !strings.HasPrefix(point, filepath.Dir(m.Data))
	})
	return strings.Join(append(there, mounts...), "\n")
}
