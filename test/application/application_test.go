package application

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/node"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

//go:embed shop.yaml
var shop string

//go:embed backend.yaml
var backend string

const manifests = "/var/lib/k3s9p/manifests/"

// outsideName is one that the sandbox's own resolver knows, at an address of loopback as
// that of systemd-resolved.
const outsideName, outsideAddress = "outside.example", "192.0.2.53"

// application is the cluster that all parts use.
type application struct {
	*cluster.Cluster
	t *testing.T
}

func TestApplication(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{Files: map[string]string{
		"/etc/resolv.conf":      "=nameserver 127.0.0.53\n",
		"/root/resolver":        "=.:53 {\n    bind 127.0.0.53\n    hosts {\n        " + outsideAddress + " " + outsideName + "\n    }\n}\n",
		manifests + "shop.yaml": "=" + shop,
		manifests + "odd.yaml":  "=apiVersion: v1\nkind: ConfigMap\nmetadata:\n\tname: odd\n",
		manifests + "next.yaml": "=" + backend,
	}})
	a := &application{c, t}
	// The autoscaler looks every 15 s by default.
	c.Up("--kube-controller-manager-arg=horizontal-pod-autoscaler-sync-period=3s")
	t.Run("a manifest that does not parse is named, the others are applied", a.odd)
	resolver := a.Background("sh", "-c", "exec /var/lib/k3s9p/bundle/*/bin/coredns -conf=/root/resolver")
	a.Await("the sandbox's own resolver", time.Minute, func() bool { return strings.Contains(resolver.Output(), "CoreDNS-") })
	a.Kubectl("wait", "--for=condition=available", "deployment/shop", "--namespace=shop", "--timeout=60s")
	a.Kubectl("wait", "--for=condition=available", "deployment/backend", "--timeout=60s")
	a.Kubectl("wait", "--for=condition=ready", "--all", "pod", "--timeout=60s")
	t.Run("the application has what its chart gives it", a.parts)
	t.Run("names", a.names)
	burnt := a.burn()
	t.Run("endpoints", a.endpoints)
	if !gvisor.Native() { // kube-proxy listens to no port, and does not see that somebody does
		t.Run("a port that somebody holds", a.held)
	}
	t.Run("kubectl top", func(t *testing.T) { a.top(t, burnt) })
	t.Run("the autoscaler follows the load", a.scale)
	t.Run("what leaves the directory leaves the cluster", a.prune)
}

// state is what k3s9p status says.
func (a *application) state() node.State {
	a.t.Helper()
	output, err := a.K3s9p("status", "-o", "json")
	var state node.State
	if err == nil {
		err = json.Unmarshal([]byte(output), &state)
	}
	if err != nil {
		a.t.Fatalf("k3s9p status: %v\n%s", err, output)
	}
	return state
}

func (a *application) odd(t *testing.T) {
	a.Await("the end of the manifests", time.Minute, func() bool { return len(a.state().Manifests) > 0 })
	got := make(map[string]string)
	for _, file := range a.state().Manifests {
		got[file.Name] = fmt.Sprint(file.Objects, " ", file.Error)
	}
	if !strings.HasPrefix(got["odd.yaml"], "0 line 4: ") || got["shop.yaml"] != "9 " || got["next.yaml"] != "6 " {
		t.Errorf("the manifests are %q", got)
	}
	if log, err := a.K3s9p("logs", "k3s9p"); err != nil || !strings.Contains(log, `msg="a manifest is not applied" file=odd.yaml error="line 4: `) {
		t.Errorf("the log says %s, %v", log, err)
	}
}

// pods are those that run, of a selector in a namespace.
func (a *application) pods(namespace, selector string) []corev1.Pod {
	a.t.Helper()
	var list corev1.PodList
	a.Get(&list, "pods", "--namespace="+namespace, "--selector="+selector, "--field-selector=status.phase=Running")
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

func (a *application) shop() corev1.Pod {
	a.t.Helper()
	pods := a.pods("shop", "app.kubernetes.io/name=shop")
	if len(pods) == 0 {
		a.t.Fatal("no pod of the shop runs")
	}
	return pods[0]
}

// from asks a pod, by its name in the namespace default, or the one on the node's network.
func (a *application) from(pod, path string) string {
	a.t.Helper()
	var p corev1.Pod
	a.Get(&p, "pod", pod)
	port := 8080
	if p.Spec.HostNetwork {
		port = 30180
	}
	answer, err := a.Try(time.Minute, "inside", "http", "GET", fmt.Sprintf("http://%s:%d%s", p.Status.PodIP, port, path))
	if err != nil {
		return fmt.Sprint("error: ", err, " ", answer)
	}
	return strings.TrimSpace(answer)
}

func (a *application) parts(t *testing.T) {
	pod := a.shop()
	for path, want := range map[string]string{
		"/env?name=colour": "red", "/env?name=TOKEN": "sesame", "/file?path=/secrets/token": "sesame", "/write?path=/data/note&text=kept": "", "/healthz": "",
	} {
		if got, err := a.HTTP(pod.Status.PodIP, path); err != nil || got != want {
			t.Errorf("%s is %q, %v", path, got, err)
		}
	}
	if note, err := a.HTTP(pod.Status.PodIP, "/file?path=/data/note"); err != nil || note != "kept" {
		t.Errorf("the volume has %q, %v", note, err)
	}
	a.Kubectl("wait", "--for=condition=complete", "job/shop-migrate", "--namespace=shop", "--timeout=60s")
	if got := a.from("client", "/get?url="+url.QueryEscape("http://shop.shop/")); got != pod.Name {
		t.Errorf("by its name the shop answers %q", got)
	}
}

func (a *application) names(t *testing.T) {
	pod := a.shop()
	dashed := strings.ReplaceAll(pod.Status.PodIP, ".", "-")
	var service corev1.Service
	a.Get(&service, "service", "shop", "--namespace=shop")
	for _, question := range []struct{ pod, path, want string }{
		{"client", "/lookup?name=shop.shop", service.Spec.ClusterIP},
		{"client", "/lookup?name=shop-pods.shop", pod.Status.PodIP},
		{"client", "/lookup?name=" + dashed + ".shop.pod.cluster.local", pod.Status.PodIP},
		{"client", "/srv?name=_http._tcp.shop.shop.svc.cluster.local", "80 shop.shop.svc.cluster.local."},
		{"client", "/srv?name=_http._tcp.shop-pods.shop.svc.cluster.local", "8080 " + dashed + ".shop-pods.shop.svc.cluster.local."},
		{"client", "/lookup?name=" + outsideName, outsideAddress},
		{"resolver-default", "/lookup?name=" + outsideName, outsideAddress},
		{"resolver-none", "/lookup?name=shop", service.Spec.ClusterIP},
		{"resolver-host", "/lookup?name=kubernetes.default", "10.43.0.1"},
		{"resolver-host", "/lookup?name=" + outsideName, outsideAddress},
	} {
		if got := a.from(question.pod, question.path); got != question.want {
			t.Errorf("%s from the pod %s: %q, want %q", question.path, question.pod, got, question.want)
		}
	}
	for _, question := range [][2]string{{"client", "/lookup?name=none.shop"}, {"resolver-default", "/lookup?name=kubernetes.default"}, {"resolver-none", "/lookup?name=kubernetes.default"}} {
		if got := a.from(question[0], question[1]); !strings.HasPrefix(got, "error: ") {
			t.Errorf("%s from the pod %s: %q", question[1], question[0], got)
		}
	}
}

// answer is one to the client's load on the Service: how often, and when last.
type answer struct {
	times int
	last  time.Time
}

// load asks the Service from a pod, does something, and asks for some seconds more.
func (a *application) load(t *testing.T, seconds int, something func()) map[string]answer {
	t.Helper()
	const limit = 90 // seconds
	var client corev1.Pod
	a.Get(&client, "pod", "client")
	load := a.Background("inside", "http", "GET", fmt.Sprintf("http://%s:8080/load?url=http://backend/&s=%d", client.Status.PodIP, limit))
	a.Await("the load", time.Minute, func() bool { return load.Ended() || strings.Contains(load.Output(), "begun") })
	something()
	a.from("client", fmt.Sprintf("/enough?s=%d", seconds))
	a.Await("the end of the load", time.Minute, load.Ended)
	answers := make(map[string]answer)
	for line := range strings.Lines(load.Output()) {
		fields := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(fields) < 3 {
			continue
		}
		n, err := strconv.Atoi(fields[0])
		seconds, err2 := strconv.ParseFloat(fields[1], 64)
		if err != nil || err2 != nil {
			t.Fatalf("the load says %q", load.Output())
		}
		answers[fields[2]] = answer{n, time.UnixMilli(int64(seconds * 1000))}
	}
	if len(answers) == 0 {
		t.Fatalf("the load says %q", load.Output())
	}
	return answers
}

func namesOf(pods []corev1.Pod) []string {
	var names []string
	for _, pod := range pods {
		names = append(names, pod.Name)
	}
	return names
}

func (a *application) endpoints(t *testing.T) {
	const selector = "app=backend"
	t.Run("each gets its share", func(t *testing.T) {
		answers := a.load(t, 2, func() {})
		total := 0
		for _, n := range answers {
			total += n.times
		}
		// The proxy takes them in turn. kube-proxy chooses at random: five standard deviations.
		margin := 0.05
		if gvisor.Native() {
			margin = 2.5 / math.Sqrt(float64(total))
		}
		t.Logf("%d answers", total)
		pods := namesOf(a.pods("default", selector))
		for _, name := range pods {
			if share := float64(answers[name].times) / float64(total); math.Abs(share-0.5) > margin {
				t.Errorf("%s got %.2f of %d", name, share, total)
			}
		}
		if len(pods) != 2 || len(answers) != 2 {
			t.Errorf("of the pods %v answered %v", pods, answers)
		}
	})
	t.Run("each gets datagrams", func(t *testing.T) {
		tries := 4
		if gvisor.Native() { // at random
			tries = 40
		}
		answers := make(map[string]bool)
		for range tries {
			answers[a.from("client", "/datagram?to=backend:81&text=who")] = true
			if len(answers) == 2 {
				break
			}
		}
		for _, name := range namesOf(a.pods("default", selector)) {
			if !answers[name] {
				t.Errorf("%s did not answer: %v", name, answers)
			}
		}
	})
	t.Run("those of a killed pod are left within 2 s", func(t *testing.T) {
		victim := a.pods("default", selector)[0].Name
		var killed time.Time
		answers := a.load(t, 4, func() {
			a.Kubectl("delete", "pod", victim, "--force", "--grace-period=0")
			killed = time.Now()
		})
		if answers[victim].times == 0 {
			t.Errorf("%s was not asked before: %v", victim, answers)
		}
		for text, got := range answers {
			if after := got.last.Sub(killed); (text == victim || strings.HasPrefix(text, "error: ")) && after > 2*time.Second {
				t.Errorf("%d times %q, the last %.1f s after it was killed", got.times, text, after.Seconds())
			}
		}
		a.Kubectl("rollout", "status", "deployment/backend", "--timeout=60s")
	})
	t.Run("a rolling update fails no request", func(t *testing.T) {
		old := namesOf(a.pods("default", selector))
		answers := a.load(t, 3, func() {
			a.Kubectl("rollout", "restart", "deployment/backend")
			a.Kubectl("rollout", "status", "deployment/backend", "--timeout=60s")
		})
		for text := range answers {
			if strings.HasPrefix(text, "error: ") {
				t.Errorf("%d times %q", answers[text].times, text)
			}
		}
		for _, name := range append(old, namesOf(a.pods("default", selector))...) {
			if answers[name].times == 0 {
				t.Errorf("%s was never asked: %v", name, slices.Sorted(maps.Keys(answers)))
			}
		}
	})
}

const held = `
apiVersion: v1
kind: Service
metadata: {name: held}
spec: {type: NodePort, selector: {app: backend}, ports: [{port: 80, targetPort: 8080, nodePort: 30180}]}
`

func (a *application) held(t *testing.T) {
	a.Apply("held", held)
	a.Await("an event of the Service", time.Minute, func() bool {
		return strings.Contains(a.Kubectl("describe", "service", "held"), "TCP port 30180 is not served at 0.0.0.0: it is in use by web (process ")
	})
	if got := a.from("client", "/get?url="+url.QueryEscape("http://held/")); !strings.HasPrefix(got, "backend-") {
		t.Errorf("at its own address it answers %q", got)
	}
	a.Kubectl("delete", "service", "held")
}

// hold is what the pod that burns holds in memory, in MiB.
const hold = 100

// burn lets a pod keep a processor busy until the sandbox ends.
func (a *application) burn() corev1.Pod {
	a.t.Helper()
	pod := a.shop()
	if _, err := a.HTTP(pod.Status.PodIP, fmt.Sprintf("/hold?mib=%d", hold)); err != nil {
		a.t.Fatal(err)
	}
	a.Background("inside", "http", "GET", "http://"+pod.Status.PodIP+":8080/burn?s=600")
	return pod
}

func (a *application) used(pod corev1.Pod) float64 {
	a.t.Helper()
	text, err := a.HTTP(pod.Status.PodIP, "/used")
	seconds, parseErr := strconv.ParseFloat(text, 64)
	if err != nil || parseErr != nil {
		a.t.Fatalf("/used is %q, %v", text, err)
	}
	return seconds
}

// usage reads the cores and MiB that kubectl top shows in a line.
func (a *application) usage(of ...string) (cores, mib float64, ok bool) {
	output, err := a.K3s9p(append([]string{"kubectl", "top"}, of...)...)
	for _, field := range strings.Fields(output) {
		if text, is := strings.CutSuffix(field, "m"); is {
			cores, _ = strconv.ParseFloat(text, 64)
			cores /= 1000
		}
		if text, is := strings.CutSuffix(field, "Mi"); is {
			mib, _ = strconv.ParseFloat(text, 64)
		}
	}
	return cores, mib, err == nil && mib > 0
}

func (a *application) top(t *testing.T, pod corev1.Pod) {
	var cores, mib, wanted float64
	// The window of the numbers has to be one of the load, as it is from now on: before, other
	// loads had their part of the processors.
	used, since := a.used(pod), time.Now()
	a.Await("the load in kubectl top", 2*time.Minute, func() bool {
		var ok bool
		cores, mib, ok = a.usage("pod", pod.Name, "--namespace=shop", "--no-headers")
		wanted = (a.used(pod) - used) / time.Since(since).Seconds()
		return ok && cores > wanted*0.7 && cores < wanted*1.4
	})
	t.Logf("the pod uses %.2f cores, kubectl top says %.2f, and %.0f MiB", wanted, cores, mib)
	if wanted < 0.1 { // the machine has other things to do, but not that many
		t.Errorf("%.2f cores are no load", wanted)
	}
	if mib < hold || mib > hold+100 {
		t.Errorf("the pod holds %d MiB, kubectl top says %.0f", hold, mib)
	}
	nodeCores, nodeMiB, _ := a.usage("nodes", "--no-headers")
	used = a.memory()
	t.Logf("the node uses %.0f MiB; kubectl top says %.2f cores, %.0f MiB", used, nodeCores, nodeMiB)
	if nodeCores < cores*0.7 || nodeMiB < 0.5*used || nodeMiB > 1.3*used {
		t.Errorf("the node: kubectl top says %.2f cores and %.0f MiB; %.0f MiB are used", nodeCores, nodeMiB, used)
	}
	services := "a proxy in userspace: pods see the node's address instead of the client's: no netfilter that kube-proxy could use: "
	if gvisor.Native() {
		services = "kube-proxy, nftables"
	}
	for addOn, want := range map[string]string{
		"dns": "CoreDNS at 10.43.0.10", "services": services,
		"storage": "directories in /var/lib/k3s9p/storage", "metrics": "kubectl top answers",
	} {
		a.Await("k3s9p status of "+addOn+" that says "+want, time.Minute, func() bool { return strings.Contains(a.how(addOn), want) })
	}
}

// memory is what the node uses, in MiB: of the machine, or what its cgroup counts where it
// shares the machine with others, except for the page cache that is not active.
func (a *application) memory() float64 {
	a.t.Helper()
	if gvisor.Native() {
		const script = `cd /sys/fs/cgroup
			cat memory/memory.usage_in_bytes memory.current 2>/dev/null
			sed -n 's/^\(total_\)*inactive_file //p' memory/memory.stat memory.stat 2>/dev/null | tail -n 1`
		var all, inactive float64
		output := a.Must("sh", "-c", script)
		if _, err := fmt.Sscan(output, &all, &inactive); err != nil {
			a.t.Fatalf("read what the cgroup counts: %v: %s", err, output)
		}
		return (all - inactive) / (1 << 20)
	}
	values := make(map[string]float64)
	for line := range strings.Lines(a.Read("/proc/meminfo")) {
		fields := strings.Fields(line)
		values[fields[0]], _ = strconv.ParseFloat(fields[1], 64)
	}
	return (values["MemTotal:"] - values["MemAvailable:"]) / 1024
}

// how is how a part of the cluster is done, as k3s9p status says.
func (a *application) how(addOn string) string {
	a.t.Helper()
	for _, other := range a.state().AddOns {
		if other.Name == addOn {
			return other.How
		}
	}
	return ""
}

func (a *application) scale(t *testing.T) {
	a.Await("a second pod", 2*time.Minute, func() bool {
		var deployment appsv1.Deployment
		a.Get(&deployment, "deployment", "shop", "--namespace=shop")
		return deployment.Status.ReadyReplicas == 2
	})
}

func (a *application) prune(t *testing.T) {
	a.Must("rm", manifests+"next.yaml")
	a.Await("the end of what it held", 2*time.Minute, func() bool {
		return !strings.Contains(a.Kubectl("get", "deployments,services,pods", "-o", "name"), "backend")
	})
	if deployments := a.Kubectl("get", "deployments", "--all-namespaces", "-o", "name"); strings.TrimSpace(deployments) != "deployment.apps/shop" {
		t.Errorf("there are left %q", deployments)
	}
}
