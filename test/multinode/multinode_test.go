package multinode

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/node"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// Both sandboxes have the same host name, as those that are made of one image have.
const first, second = "sandbox", "second"

// somePods are one on each node.
const somePods = `
apiVersion: v1
kind: Pod
metadata: {name: on-%[1]s, labels: {app: web}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, ` + cluster.Probe + `}]
`

// ofK3s reports whether the nodes are of k3s: it has one program where the other
// distribution has several, and tells nobody which tokens there are.
func ofK3s() bool { return gvisor.Distribution() == "k3s" }

// agent is the program that has the kubelet in it.
func agent() string {
	if ofK3s() {
		return "k3s"
	}
	return "kubelet"
}

// nodes are two machines; the first has the control plane.
type nodes struct {
	a, b *cluster.Cluster
}

func TestMultinode(t *testing.T) {
	a := cluster.Start(t, gvisor.Options{})
	b := cluster.Start(t, gvisor.Options{Beside: a.Sandbox})
	n := nodes{a, b}
	if ofK3s() { // its settings are read as ever
		b.Must("mkdir", "-p", "/etc/rancher/k3s")
		b.Write("/etc/rancher/k3s/config.yaml", "node-label: [zone=there]\n")
	}
	beforeA, beforeB := a.Snapshot(), b.Snapshot()
	a.Up("--kubelet-arg=node-labels=zone=here")
	token := n.token(t)
	t.Run("bad input", func(t *testing.T) { n.badInput(t, token, beforeB) })
	join := []string{"--server", token.Server, "--token", token.Token, "--node-name", second}
	if !ofK3s() {
		join = append(join, "--kubelet-arg=node-labels=zone=there")
	}
	b.Join(join...)
	n.bothReady(t)
	for zone, name := range map[string]string{"here": first, "there": second} {
		if nodes := a.Kubectl("get", "nodes", "--selector=zone="+zone, "-o", "name"); strings.TrimSpace(nodes) != "node/"+name {
			t.Errorf("the label zone=%s have the nodes %q", zone, nodes)
		}
	}
	n.apply(fmt.Sprintf(somePods, first), fmt.Sprintf(somePods, second))
	t.Run("pods", n.pods)
	t.Run("Services", n.services)
	t.Run("volumes", n.volumes)
	t.Run("what a node may do", n.limits)
	t.Run("down and up without the token", func(t *testing.T) {
		during := b.Snapshot()
		for _, trace := range []string{"route 10.42.0.0/24 192.0.2.2", "device cni0", "process " + agent()} {
			if !strings.Contains(during, trace) {
				t.Errorf("there is no %q to be left: the comparison would prove nothing", trace)
			}
		}
		b.Down()
		b.Unchanged(beforeB)
		b.Up()
		n.answers(t)
	})
	t.Run("SIGKILL of the supervisor, then up", func(t *testing.T) {
		b.KillSupervisor()
		b.Up()
		n.answers(t)
	})
	t.Run("the server down and up", func(t *testing.T) {
		var service corev1.Service
		a.Get(&service, "service", "web")
		pod := n.pod(second)
		b.Await("the Service on the second node, by its own pod", time.Minute, func() bool {
			answer, err := b.HTTP(service.Spec.ClusterIP, "/")
			return err == nil && answer == pod.Name
		})
		a.Down()
		a.Unchanged(beforeA)
		for _, address := range []string{pod.Status.PodIP, service.Spec.ClusterIP} {
			tries, limit := 1, 2*time.Minute
			if ofK3s() && gvisor.Native() { // kube-proxy chooses at random, and nobody takes out the pod that is gone
				tries, limit = 20, 5*time.Second
			}
			var answer string
			var err error
			for range tries {
				if answer, err = b.Try(limit, "inside", "http", "GET", "http://"+address+":8080/"); err == nil {
					break
				}
			}
			if err != nil || answer != pod.Name {
				t.Errorf("without a server %s answers %q, %v", address, answer, err)
			}
		}
		a.Up()
		n.answers(t)
	})
	t.Run("SIGKILL of the supervisor, then purge", func(t *testing.T) {
		b.KillSupervisor()
		output, err := b.K3s9p("down", "--purge")
		if err != nil {
			t.Fatalf("k3s9p down --purge: %v\n%s", err, output)
		}
		b.Unchanged(beforeB)
		if names := a.Kubectl("get", "nodes", "-o", "name"); strings.TrimSpace(names) != "node/"+first {
			t.Errorf("the nodes are %s", names)
		}
		a.Await("the end of the route", time.Minute, func() bool { return !strings.Contains(a.Must("ip", "route"), "10.42.1.0/24") })
	})
	a.Down()
	a.Unchanged(beforeA)
}

// apply makes objects without leaving a file.
func (n nodes) apply(manifests ...string) {
	n.a.Apply("objects", strings.Join(manifests, "---\n"))
	n.a.Must("rm", "/root/objects.yaml")
}

// answers waits until the pods on both nodes answer each other.
func (n nodes) answers(t *testing.T) {
	t.Helper()
	n.a.Await("pods that answer each other", 2*time.Minute, func() bool {
		for _, way := range [][2]string{{first, second}, {second, first}} {
			from, to := n.pod(way[0]), n.pod(way[1])
			answer, err := n.a.HTTP(from.Status.PodIP, "/get?url="+url.QueryEscape("http://"+to.Status.PodIP+":8080/"))
			if err != nil || answer != to.Name {
				return false
			}
		}
		return true
	})
}

// badInput is refused with a hint, and nothing is changed.
func (n nodes) badInput(t *testing.T, token node.Token, before string) {
	var short node.Token
	output, err := n.a.K3s9p("token", "create", "--ttl", "1s", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(output), &short)
	}
	if err != nil {
		t.Fatalf("k3s9p token create: %v\n%s", err, output)
	}
	n.a.Await("the end of a token", time.Minute, func() bool {
		output, err := n.a.K3s9p("token", "list")
		return err == nil && !strings.Contains(output, short.ID) && strings.Contains(output, token.ID)
	})
	wrongSecret, expired := "it has a token "+token.ID+", but with another secret", "it has no token "+short.ID+" (any more)"
	if ofK3s() {
		wrongSecret, expired = "refuses the token "+token.ID+": there is none of that id (any more), or it has another secret", "refuses the token "+short.ID
	} else { // another controller signs what everybody may read, by each token, and follows
		n.awaitSignatures(token, short)
	}
	secret := token.Token[len(token.Token)-16:]
	for name, c := range map[string]struct {
		server, token string
		more          []string
		says          string
	}{
		"a wrong secret":      {token.Server, strings.Replace(token.Token, secret, "0123456789abcdef", 1), nil, wrongSecret},
		"expired":             {token.Server, short.Token, nil, expired},
		"of another cluster":  {token.Server, "K10" + strings.Repeat("0", 64) + "::" + token.ID + "." + secret, nil, "the token is of another cluster"},
		"half a token":        {token.Server, token.Token[:40], nil, "the token has not the form of one"},
		"no token":            {token.Server, "", nil, "there is no token to join with"},
		"nobody listens":      {"https://192.0.2.2:6444", token.Token, nil, "connection refused"},
		"no such machine":     {"https://192.0.2.99:6443", token.Token, nil, "the server https://192.0.2.99:6443 is not reached"},
		"not HTTPS":           {"http://192.0.2.2:6443", token.Token, nil, "is not the URL of an apiserver"},
		"no apiserver":        {"https://192.0.2.2:10250", token.Token, nil, "has no cluster that this file can join"},
		"a name that is used": {token.Server, token.Token, []string{"--node-name", first}, "has a node sandbox already"},
		"an address of others": {token.Server, token.Token, []string{"--node-name", second, "--advertise-address", "192.0.2.2"},
			"--advertise-address 192.0.2.2 is no IPv4 address of this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"join", "--detach", "--server", c.server, "--token", c.token}, c.more...)
			output, err := n.b.K3s9p(args...)
			if err == nil || !strings.Contains(output, c.says) || !strings.Contains(output, "\nhint: ") {
				t.Errorf("%v, and it prints\n%s", err, output)
			}
		})
	}
	output, err = n.b.K3s9p("join", "--dry-run", "--server", token.Server, "--token", token.Token, "--node-name", second)
	if err != nil || !strings.Contains(output, "join would bring up node second") || !strings.Contains(output, "a part of 10.42.0.0/16 that the server gives") {
		t.Errorf("join --dry-run: %v\n%s", err, output)
	}
	if output, err := n.b.Try(time.Minute, "ls", cluster.Data); err == nil {
		t.Errorf("%s has %s", cluster.Data, output)
	}
	n.b.Unchanged(before)
	if names := n.a.Kubectl("get", "nodes", "-o", "name"); strings.TrimSpace(names) != "node/"+first {
		t.Errorf("the nodes are %s", names)
	}
}

// awaitSignatures waits until what everybody may read is signed by one token, and not by
// another.
func (n nodes) awaitSignatures(token, other node.Token) {
	n.a.Await("the signatures by the tokens that there are", time.Minute, func() bool {
		signed := n.a.Kubectl("get", "configmap", "cluster-info", "--namespace=kube-public", "-o", "yaml")
		return !strings.Contains(signed, other.ID) && strings.Contains(signed, token.ID)
	})
}

// token makes one on the server.
func (n nodes) token(t *testing.T) (token node.Token) {
	t.Helper()
	output, err := n.a.K3s9p("token", "create", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(output), &token)
	}
	if err != nil {
		t.Fatalf("k3s9p token create: %v\n%s", err, output)
	}
	return token
}

// bothReady waits until both nodes are, for the cluster.
func (n nodes) bothReady(t *testing.T) {
	t.Helper()
	n.a.Kubectl("wait", "--for=condition=ready", "node", first, second, "--timeout=60s")
	var list corev1.NodeList
	n.a.Get(&list, "nodes")
	if len(list.Items) != 2 {
		t.Errorf("there are %d nodes", len(list.Items))
	}
	for _, node := range list.Items {
		t.Logf("node %s: pods in %s, reached at %s", node.Name, node.Spec.PodCIDR, node.Annotations["k3s9p.local/address"])
	}
}

// pod is the one on a node.
func (n nodes) pod(node string) (pod corev1.Pod) {
	n.a.Get(&pod, "pod", "on-"+node)
	return pod
}

// pods asks the pods on both nodes, from both nodes and from each other.
func (n nodes) pods(t *testing.T) {
	n.a.Kubectl("wait", "--for=condition=ready", "pod/on-"+first, "pod/on-"+second, "--timeout=60s")
	for _, to := range []string{first, second} {
		pod := n.pod(to)
		for from, on := range map[string]*cluster.Cluster{first: n.a, second: n.b} {
			if answer, err := on.HTTP(pod.Status.PodIP, "/"); err != nil || answer != pod.Name {
				t.Errorf("from node %s the pod on %s answers %q, %v", from, to, answer, err)
			}
		}
	}
	one, other := n.pod(first), n.pod(second)
	for _, way := range [][2]corev1.Pod{{one, other}, {other, one}} {
		from, to := way[0], way[1]
		t.Run("from "+from.Name+" to "+to.Name, func(t *testing.T) {
			ask := func(path string) string {
				answer, err := n.a.HTTP(from.Status.PodIP, path)
				if err != nil {
					return fmt.Sprint(err, answer)
				}
				return answer
			}
			if answer := ask("/get?url=" + url.QueryEscape("http://"+to.Status.PodIP+":8080/")); answer != to.Name {
				t.Errorf("TCP: it answers %q", answer)
			}
			if answer := ask("/datagram?to=" + to.Status.PodIP + ":8080&text=hello"); !strings.Contains(answer, to.Name) {
				t.Errorf("UDP: it answers %q", answer)
			}
			download := ask("/download?url=" + url.QueryEscape("http://"+to.Status.PodIP+":8080/bytes?mib=50"))
			upload := ask("/upload?mib=50&url=" + url.QueryEscape("http://"+to.Status.PodIP+":8080/receive"))
			for what, answer := range map[string]string{"download": download, "upload": upload} {
				fields := strings.Fields(answer)
				if len(fields) != 2 {
					t.Errorf("%s: it answers %q", what, answer)
					continue
				}
				seconds, err := strconv.ParseFloat(fields[1], 64)
				if err != nil || fields[0] != strconv.Itoa(50<<20) {
					t.Errorf("%s: it answers %q", what, answer)
					continue
				}
				t.Logf("%s: %.1f MB/s", what, 50*1.048576/seconds)
			}
		})
	}
	for _, name := range []string{first, second} {
		t.Run("exec and logs on "+name, func(t *testing.T) {
			if answer := n.a.Kubectl("exec", "on-"+name, "--", "/web", "say", "here"); strings.TrimSpace(answer) != "here" {
				t.Errorf("exec: %q", answer)
			}
			n.a.Kubectl("logs", "on-"+name)
		})
	}
	if ofK3s() {
		return // nobody does the metrics
	}
	n.a.Await("metrics of both nodes", time.Minute, func() bool {
		output, err := n.a.K3s9p("kubectl", "top", "nodes")
		return err == nil && strings.Contains(output, first) && strings.Contains(output, second) && !strings.Contains(output, "unknown")
	})
}

const aService = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: tcp, port: 8080, nodePort: 30080}, {name: udp, port: 8080, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: at-host-port}
spec:
  nodeName: second
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, ports: [{containerPort: 8080, hostPort: 8088}], ` + cluster.Probe + `}]
`

// services asks a Service with an endpoint on each node from all places, and each of its
// endpoints has to answer.
func (n nodes) services(t *testing.T) {
	n.apply(aService)
	n.a.Kubectl("wait", "--for=condition=ready", "pod/at-host-port", "--timeout=60s")
	var service corev1.Service
	n.a.Get(&service, "service", "web")
	address := service.Spec.ClusterIP + ":8080"
	get := "/get?url=" + url.QueryEscape("http://"+address+"/")
	byName := "/get?url=" + url.QueryEscape("http://web.default.svc.cluster.local:8080/")
	datagram := "/datagram?text=hello&to=" + address
	outside := func(address string) func() (string, error) {
		return func() (answer string, err error) {
			err = n.b.Outside(func() error {
				answer, err = gvisor.Get("http://" + address + "/")
				return err
			})
			return answer, err
		}
	}
	for name, way := range map[string]func() (string, error){
		"the first node":                     func() (string, error) { return n.a.HTTP(service.Spec.ClusterIP, "/") },
		"the second node":                    func() (string, error) { return n.b.HTTP(service.Spec.ClusterIP, "/") },
		"a pod on the first node":            func() (string, error) { return n.a.HTTP(n.pod(first).Status.PodIP, get) },
		"a pod on the second node":           func() (string, error) { return n.b.HTTP(n.pod(second).Status.PodIP, get) },
		"a pod on the first node, by name":   func() (string, error) { return n.a.HTTP(n.pod(first).Status.PodIP, byName) },
		"a pod on the second node, by name":  func() (string, error) { return n.b.HTTP(n.pod(second).Status.PodIP, byName) },
		"a pod on the second node, UDP":      func() (string, error) { return n.b.HTTP(n.pod(second).Status.PodIP, datagram) },
		"outside, at the first node's port":  outside(gvisor.Address + ":30080"),
		"outside, at the second node's port": outside(gvisor.BesideAddress + ":30080"),
	} {
		t.Run("from "+name, func(t *testing.T) {
			answers := make(map[string]bool)
			n.a.Await("an answer of each endpoint", time.Minute, func() bool {
				if answer, err := way(); err != nil {
					t.Logf("%v: %s", err, answer)
				} else {
					answers[strings.TrimSpace(answer)] = true
				}
				return answers["on-"+first] && answers["on-"+second]
			})
		})
	}
	t.Run("kubernetes.default from a pod on the second node", func(t *testing.T) {
		answer, err := n.b.HTTP(n.pod(second).Status.PodIP, "/get?url="+url.QueryEscape("https://kubernetes.default/version"))
		if err == nil || !strings.Contains(answer, "certificate") { // the apiserver's, which the pod does not know
			t.Errorf("the apiserver answers %q, %v", answer, err)
		}
	})
	t.Run("a hostPort is on its pod's node only", func(t *testing.T) {
		n.b.Await("the pod at its node's port", 30*time.Second, func() bool {
			answer, err := outside(gvisor.BesideAddress + ":8088")()
			return err == nil && answer == "at-host-port"
		})
		if answer, err := outside(gvisor.Address + ":8088")(); err == nil {
			t.Errorf("on the first node it answers %q", answer)
		}
	})
	n.a.Kubectl("delete", "pod/at-host-port", "--now")
}

const aClaim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: with-data}
spec:
  nodeSelector: {kubernetes.io/hostname: second}
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, volumeMounts: [{name: data, mountPath: /data}], ` + cluster.Probe + `}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// volumes are directories of the node that the pod is on.
func (n nodes) volumes(t *testing.T) {
	n.apply(aClaim)
	n.a.Kubectl("wait", "--for=condition=ready", "pod/with-data", "--timeout=60s")
	var pod corev1.Pod
	n.a.Get(&pod, "pod", "with-data")
	if answer, err := n.b.HTTP(pod.Status.PodIP, "/write?path=/data/file&text=here"); err != nil {
		t.Errorf("write: %v %s", err, answer)
	}
	directory := func(c *cluster.Cluster) string {
		output, _ := c.Try(time.Minute, "sh", "-c", "cat "+cluster.Data+"/storage/pvc-*/file")
		return strings.TrimSpace(output)
	}
	if text := directory(n.b); text != "here" {
		t.Errorf("on the second node there is %q", text)
	}
	if text := directory(n.a); text == "here" {
		t.Error("the volume is on the first node")
	}
	n.a.Kubectl("delete", "pod/with-data", "pvc/data", "--now")
	n.b.Await("the end of the volume", time.Minute, func() bool { return n.b.Must("ls", cluster.Data+"/storage") == "" })
}

// foreignVolume is a directory of the first node.
const foreignVolume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: foreign}
spec:
  storageClassName: local-path
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Mi}
  hostPath: {path: /root}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [sandbox]}]}]}}
`

// limits looks what the second node is refused.
func (n nodes) limits(t *testing.T) {
	const foreign = cluster.Data + "/foreign.yaml"
	n.b.Write(foreign, foreignVolume)
	programs := cluster.Data + "/bundle/*/bin/"
	if ofK3s() {
		programs = cluster.Data + "/k3s/data/current/bin/"
	}
	for name, c := range map[string]struct {
		says string
		args []string
	}{
		"a volume of another node": {"a node makes and deletes volumes of StorageClass local-path on itself", []string{"create", "-f", foreign}},
		"another node":             {`node "second" is not allowed to modify node "sandbox"`, []string{"delete", "node", first}},
		"secrets":                  {"orbidden", []string{"get", "secrets", "--all-namespaces"}},
		"pods of other nodes":      {"orbidden", []string{"get", "pods", "--all-namespaces"}},
	} {
		output, err := n.b.Try(time.Minute, append([]string{"sh", "-c", `KUBECACHEDIR=` + cluster.Data + `/cache exec ` + programs + `kubectl --kubeconfig=` + cluster.Data + `/kubeconfig/kubelet.conf "$@"`, "kubectl"}, c.args...)...)
		if err == nil || !strings.Contains(output, c.says) {
			t.Errorf("%s: %v, %s", name, err, output)
		}
	}
	if output, err := n.b.K3s9p("kubectl", "get", "nodes"); err == nil || !strings.Contains(output, "hint: use k3s9p kubectl and k3s9p kubeconfig on that server") {
		t.Errorf("k3s9p kubectl: %v, %s", err, output)
	}
}
