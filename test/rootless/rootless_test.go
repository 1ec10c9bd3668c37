package rootless

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"k3s9p/internal/node"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// workload is cluster.Web behind a Service with a node port, and a pod with a hostPort.
var workload = cluster.Web(2, "") + `
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: tcp, port: 8080, nodePort: 30080}, {name: udp, port: 8080, nodePort: 30080, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: at-host-port}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, ports: [{containerPort: 8080, hostPort: 8088}]}]
`

func TestRootless(t *testing.T) {
	root := gvisor.OverlayRoot
	if gvisor.Old() {
		root = gvisor.NinePRoot
	}
	c := start(t, root)
	before := c.Snapshot()
	t.Run("check and a dry run say so", func(t *testing.T) {
		for _, args := range [][]string{{"check"}, {"up", "--dry-run"}} {
			output, err := c.K3s9p(args...)
			if err != nil || !strings.Contains(output, "without privileges, in namespaces of its own: root has no CAP_SYS_ADMIN and no CAP_NET_ADMIN here") {
				t.Errorf("k3s9p %v: %v\n%s", args, err, output)
			}
		}
		if output, err := c.K3s9p("up", "--rootless=never"); err == nil || !strings.Contains(output, "CAP_SYS_ADMIN") {
			t.Errorf("k3s9p up --rootless=never: %v\n%s", err, output)
		}
		c.Unchanged(before)
	})
	t.Run("what cannot be is said before anything is changed", func(t *testing.T) {
		holder := c.Background("inside", "listen", "0.0.0.0:8081")
		c.Await("somebody at port 8081", 10*time.Second, func() bool { return strings.Contains(holder.Output(), "listening") })
		output, err := c.K3s9p("up", "--detach", "--publish=8081:30080")
		if err == nil || !strings.Contains(output, "port 8081, which --publish 8081:30080 needs, is in use by inside (process") {
			t.Errorf("k3s9p up with a published port in use: %v\n%s", err, output)
		}
		holder.Stop()
		c.Must("mv", "/dev/net", "/dev/no-net")
		if output, err := c.K3s9p("up", "--detach"); err == nil || !strings.Contains(output, "/dev/net/tun: no such file") || !strings.Contains(output, "--network=none") {
			t.Errorf("k3s9p up without /dev/net/tun: %v\n%s", err, output)
		}
		c.Must("mv", "/dev/no-net", "/dev/net")
		if output, err := c.Try(time.Minute, "ls", cluster.Data); err == nil {
			t.Errorf("%s has %s", cluster.Data, output)
		}
		c.Unchanged(before)
	})
	c.Up("--publish=8090:30080", "--publish=8090:30080/udp", "--publish=127.0.0.1:8091:8088")
	pods := deploy(c)
	names := fmt.Sprint(pods[0].Name, " ", pods[1].Name)
	t.Run("pods reach each other, by address and by the name of a Service", func(t *testing.T) {
		for address, want := range map[string]string{pods[1].Status.PodIP: pods[1].Name, "web": names, "web.default.svc.cluster.local": names} {
			answer, err := c.AskPod(pods[0], "/get?url=http://"+address+":8080/")
			if err != nil || answer == "" || !strings.Contains(want, answer) {
				t.Errorf("%s answers %q, %v", address, answer, err)
			}
		}
	})
	t.Run("a name that the sandbox's resolver knows, at an address of loopback", func(t *testing.T) {
		resolver := c.Background("sh", "-c", "exec /var/lib/k3s9p/bundle/*/bin/coredns -conf=/root/resolver")
		defer resolver.Stop()
		c.Await("the answer", time.Minute, func() bool {
			answer, err := c.AskPod(pods[0], "/lookup?name=outside.example")
			return err == nil && answer == "192.0.2.53"
		})
	})
	t.Run("a node port and a hostPort are on the sandbox's network", func(t *testing.T) {
		for port, want := range map[string]string{"30080": names, "8088": "at-host-port", "8090": names} {
			c.Await("port "+port, 30*time.Second, func() bool {
				answer := fromOutside(c, gvisor.Address+":"+port)
				return answer != "" && strings.Contains(want, answer)
			})
		}
		for _, port := range []string{"30080", "8090"} {
			c.Await("an answer of a pod by UDP at port "+port, 30*time.Second, func() bool {
				answer := datagramFromOutside(c, gvisor.Address+":"+port)
				return answer != "" && strings.Contains(names, answer)
			})
		}
		if answer, err := c.Try(time.Minute, "inside", "http", "GET", "http://127.0.0.1:30080/"); err != nil || !strings.Contains(names, answer) {
			t.Errorf("the node port answers in the sandbox with %q, %v", answer, err)
		}
		if answer, err := c.Try(time.Minute, "inside", "http", "GET", "http://127.0.0.1:8091/"); err != nil || answer != "at-host-port" {
			t.Errorf("what is published on loopback answers in the sandbox with %q, %v", answer, err)
		}
		if answer := fromOutside(c, gvisor.Address+":8091"); answer != "" {
			t.Errorf("what is published on loopback answers %q outside", answer)
		}
	})
	t.Run("a node port that somebody outside has is named with who", func(t *testing.T) {
		holder := c.Background("inside", "listen", "0.0.0.0:30081")
		defer holder.Stop()
		c.Await("somebody at port 30081", 10*time.Second, func() bool { return strings.Contains(holder.Output(), "listening") })
		c.Kubectl("expose", "deployment/web", "--name=taken", "--port=8080", `--overrides={"spec":{"type":"NodePort","ports":[{"port":8080,"nodePort":30081}]}}`)
		awaitEvent(c, t, "taken", "PortNotServed", "port 30081", "in use by inside (process")
		c.Kubectl("delete", "service", "taken")
	})
	t.Run("egress", func(t *testing.T) { egress(t, c, pods[0]) })
	t.Run("datagrams", func(t *testing.T) { datagrams(t, c, pods) })
	t.Run("logs, exec and ctr", func(t *testing.T) {
		if out := c.Kubectl("exec", pods[0].Name, "--", "/web", "say", "hello"); strings.TrimSpace(out) != "hello" {
			t.Errorf("exec prints %q", out)
		}
		if out := c.Kubectl("logs", pods[0].Name); !strings.Contains(out, "serving on") {
			t.Errorf("logs prints %q", out)
		}
		if out, err := c.K3s9p("ctr", "images", "list"); err != nil || !strings.Contains(out, "k3s9p.local/web:1") {
			t.Errorf("ctr prints %s, %v", out, err)
		}
		container := c.Background(cluster.Program, "ctr", "run", "--rm", "k3s9p.local/web:1", "by-hand", "/web", "serve", ":8080")
		c.Await("the container that ctr runs", time.Minute, func() bool { return strings.Contains(container.Output(), "serving on :8080") })
		if out, err := c.K3s9p("ctr", "tasks", "exec", "--exec-id=hello", "by-hand", "/web", "say", "hello"); err != nil || !strings.HasSuffix("\n"+strings.TrimSpace(out), "\nhello") { // after a warning about cgroup v1
			t.Errorf("ctr tasks exec prints %q, %v", out, err)
		}
		if out, err := c.K3s9p("ctr", "tasks", "kill", "by-hand"); err != nil {
			t.Errorf("ctr tasks kill: %v\n%s", err, out)
		}
		c.Await("the end of ctr run", 30*time.Second, container.Ended)
	})
	t.Run("the memory and the processor time of a container follow a load", func(t *testing.T) { statistics(t, c, pods[0]) })
	if !gvisor.Old() {
		killed(t, c)
		t.Run("Ctrl-C in the middle, and again and again", func(t *testing.T) { upAndDown(c, t, before) })
	}
	t.Run("down leaves nothing", func(t *testing.T) {
		if output, err := c.K3s9p("down", "--purge"); err != nil {
			t.Fatalf("k3s9p down --purge: %v\n%s", err, output)
		}
		c.Unchanged(before)
	})
}

// A sandbox without /dev/net/tun has a cluster that nothing leaves, if that is accepted.
func TestWithoutNetwork(t *testing.T) {
	c := start(t, gvisor.NinePRoot)
	c.Must("rm", "-r", "/dev/net")
	before := c.Snapshot()
	c.Up("--network=none")
	pods := deploy(c)
	if answer, err := c.AskPod(pods[0], "/get?url=http://web:8080/"); err != nil || answer != pods[0].Name && answer != pods[1].Name {
		t.Errorf("a Service answers a pod with %q, %v", answer, err)
	}
	gvisor.ServeOutside(t, c.Outside)
	if answer, err := c.AskPod(pods[0], "/get?url=http://"+gvisor.OutsideAddress+":8080/"); err == nil {
		t.Errorf("a pod is answered by the outside with %q", answer)
	}
	if out, err := c.K3s9p("status"); err != nil || !strings.Contains(out, "none: pods reach nothing outside of the cluster") {
		t.Errorf("status prints %s, %v", out, err)
	}
	c.Down()
	c.Unchanged(before)
}

// killed ends one of the two parts: the other one ends what is left, and the next up
// goes on.
func killed(t *testing.T, c *cluster.Cluster) {
	for _, part := range []string{"k3s9p-outside", "k3s9p-supervisor"} {
		// The cluster remembers a pod as ready until the kubelet says otherwise.
		c.Await("something that could be left, without which the comparison proves nothing", time.Minute, func() bool {
			during := c.Snapshot()
			return strings.Contains(during, "process containerd-shim") && strings.Contains(during, "process web")
		})
		c.Must("pkill", "-KILL", "-f", "^"+part)
		c.Await("the end of all processes after SIGKILL of "+part, time.Minute, func() bool {
			during, phase := c.Snapshot(), c.Status().Phase
			// What was not killed of the node cleans up before it ends, and still counts as running.
			return !strings.Contains(during, "process containerd") && !strings.Contains(during, "process web") &&
				!strings.Contains(during, " k3s9p-") && phase != node.Running && phase != node.Stopping
		})
		c.Up()
		c.Kubectl("wait", "--for=condition=ready", "pod/at-host-port", "--timeout=60s")
	}
}

// upAndDown interrupts up, in the middle and when the cluster is ready, and goes on.
func upAndDown(c *cluster.Cluster, t *testing.T, before string) {
	c.Down()
	c.Unchanged(before)
	for _, when := range []string{"check and fix", "make the pod network", "make certificates", "the cluster is ready"} {
		up := c.Background(cluster.Program, "up")
		c.Await(when, 3*time.Minute, func() bool { return up.Ended() || strings.Contains(up.Output(), when) })
		up.Signal("INT")
		c.Await("the end of up", time.Minute, up.Ended)
		if ready := when == "the cluster is ready"; strings.Contains(up.Output(), "interrupted") == ready {
			t.Errorf("up, interrupted at %q, printed %s", when, up.Output())
		}
		c.Unchanged(before)
	}
	for range 3 {
		c.Up()
		c.Down()
		c.Unchanged(before)
	}
}

// start is a sandbox as docker run --runtime=runsc makes it.
func start(t *testing.T, root gvisor.Root) *cluster.Cluster {
	return cluster.Start(t, gvisor.Options{Docker: true, Root: root, Files: map[string]string{
		"/root/workload.yaml": "=" + workload,
		"/etc/resolv.conf":    "=nameserver 127.0.0.53\n",
		"/root/resolver":      "=.:53 {\n    bind 127.0.0.53\n    hosts {\n        192.0.2.53 outside.example\n    }\n}\n",
	}})
}

// deploy runs the workload, and returns the pods of the Deployment. Their Service serves
// them: what serves it follows the cluster, and hears of the pods after it.
func deploy(c *cluster.Cluster) []corev1.Pod {
	c.Kubectl("apply", "-f", "/root/workload.yaml")
	c.Kubectl("rollout", "status", "deployment/web", "--timeout=90s")
	c.Kubectl("wait", "--for=condition=ready", "pod/at-host-port", "--timeout=90s")
	var list corev1.PodList
	c.Get(&list, "pods", "--selector=app=web", "--field-selector=status.phase=Running")
	c.Await("an answer of the Service", time.Minute, func() bool {
		_, err := c.AskPod(list.Items[0], "/get?url=http://web:8080/")
		return err == nil
	})
	return list.Items
}

func egress(t *testing.T, c *cluster.Cluster, pod corev1.Pod) {
	gvisor.ServeOutside(t, c.Outside)
	const mib = 50
	server := gvisor.OutsideAddress + ":8080"
	for _, way := range []struct{ name, path string }{
		{"down", fmt.Sprintf("/download?url=http://%s/bytes%%3Fmib=%d", server, mib)},
		{"up", fmt.Sprintf("/upload?url=http://%s/receive&mib=%d", server, mib)},
	} {
		answer, err := c.AskPod(pod, way.path)
		var bytes int64
		var seconds float64
		if err == nil {
			_, err = fmt.Sscan(answer, &bytes, &seconds)
		}
		if err != nil || bytes != mib<<20 {
			t.Errorf("%s: %d bytes came, %v", way.name, bytes, err)
			continue
		}
		t.Logf("%s: %.1f MB/s", way.name, float64(bytes)/1e6/max(seconds, 1e-3))
	}
}

// datagrams go to a server outside and come back from there, once, to the pod that has
// sent them: of any size, and from two pods at a time.
func datagrams(t *testing.T, c *cluster.Cluster, pods []corev1.Pod) {
	gvisor.ServeOutside(t, c.Outside)
	for _, size := range []int{1, 1400, 3000, 20000} {
		var group sync.WaitGroup
		for _, pod := range pods {
			group.Go(func() {
				text := pod.Name + strings.Repeat("x", size)
				answer, err := c.AskPod(pod, "/datagram?to="+gvisor.OutsideAddress+":8080&text="+text)
				if err != nil || answer != text {
					t.Errorf("%d bytes of %s came back as %d bytes, %.40q, %v", len(text), pod.Name, len(answer), answer, err)
				}
			})
		}
		group.Wait()
	}
	if output, err := c.K3s9p("status"); err != nil || !strings.Contains(output, "UDP by another, which has a raw socket") {
		t.Errorf("status prints %s, %v", output, err)
	}
}

// fromOutside returns what a web server answers to who asks on the other end of eth0.
func fromOutside(c *cluster.Cluster, address string) string {
	var answer []byte
	_ = c.Outside(func() error { // without an answer it is empty
		conn, err := net.DialTimeout("tcp4", address, 10*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		answer, err = io.ReadAll(response.Body)
		return err
	})
	return string(answer)
}

// datagramFromOutside returns what a UDP server answers to who asks on the other end of
// eth0.
func datagramFromOutside(c *cluster.Cluster, address string) string {
	answer := make([]byte, 100)
	var n int
	_ = c.Outside(func() error { // without an answer it is empty
		conn, err := net.Dial("udp4", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write([]byte("who")); err != nil {
			return err
		}
		n, err = conn.Read(answer)
		return err
	})
	return string(answer[:n])
}

// statistics compares what the kubelet says of a container before a load and after with
// what its process says.
func statistics(t *testing.T, c *cluster.Cluster, pod corev1.Pod) {
	const memory = 100 << 20
	used, before := processorTime(t, c, pod), sampleSince(c, pod, time.Now())
	for _, path := range []string{"/hold?mib=100", "/burn?s=3"} {
		if _, err := c.AskPod(pod, path); err != nil {
			t.Fatal(err)
		}
	}
	used = processorTime(t, c, pod) - used
	// The clocks of the sandbox and of this machine are the same.
	after := sampleSince(c, pod, time.Now())
	if more := int64(*after.Memory.WorkingSetBytes) - int64(*before.Memory.WorkingSetBytes); more < memory*9/10 || more > memory*13/10 {
		t.Errorf("%d MiB are reported as %d MiB more", memory>>20, more>>20)
	}
	more := time.Duration(*after.CPU.UsageCoreNanoSeconds - *before.CPU.UsageCoreNanoSeconds).Seconds()
	if used < 1 || more < used*0.75 || more > used*1.25+1 { // the kubelet's probes go on meanwhile
		t.Errorf("%.1f s of the processor are reported as %.1f s more", used, more)
	}
}

// processorTime is what the process of a pod says it has used, in seconds.
func processorTime(t *testing.T, c *cluster.Cluster, pod corev1.Pod) (seconds float64) {
	t.Helper()
	answer, err := c.AskPod(pod, "/used")
	if err == nil {
		_, err = fmt.Sscan(answer, &seconds)
	}
	if err != nil {
		t.Fatal(err)
	}
	return seconds
}

// sampleSince is a sample of the container of a pod that was taken after a time, by
// cAdvisor: the pod of it is known, and the processor has been used.
func sampleSince(c *cluster.Cluster, pod corev1.Pod, since time.Time) (sample stats.ContainerStats) {
	c.Await("a sample of the container", time.Minute, func() bool {
		var summary stats.Summary
		output := c.Kubectl("get", "--raw", "/api/v1/nodes/"+pod.Spec.NodeName+"/proxy/stats/summary")
		if err := json.Unmarshal([]byte(output), &summary); err != nil {
			return false
		}
		for _, p := range summary.Pods {
			if p.PodRef.Name != pod.Name || len(p.Containers) != 1 {
				continue
			}
			sample = p.Containers[0]
			return sample.CPU != nil && sample.Memory != nil && sample.CPU.Time.After(since) && sample.Memory.Time.After(since) &&
				*sample.CPU.UsageCoreNanoSeconds > 0 && *sample.Memory.WorkingSetBytes > 0
		}
		return false
	})
	return sample
}
