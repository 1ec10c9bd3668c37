package experiment

import (
	"strings"
	"testing"
	"time"

	"k3s9p/internal/blocker"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/report"
	"k3s9p/test/node"
)

// Kubelets of the sandbox besides the node's own.
const (
	stockKubelet    = "/usr/local/stock/kubelet"
	cgroupsKubelet  = "/usr/local/cgroups/kubelet"
	cadvisorKubelet = "/usr/local/cadvisor/kubelet"
)

// stockPrograms are the node's programs without any patch.
var stockPrograms = map[string]string{
	node.Kubelet:                             contract.KubeStock,
	"/usr/local/bin/containerd-shim-runc-v2": contract.Stock("containerd-shim-runc-v2"),
	"/usr/local/lib/cni/bridge":              contract.Stock("bridge"),
	"/usr/local/lib/cni/ptp":                 contract.Stock("ptp"),
}

func find(t *testing.T, id string) blocker.Blocker {
	t.Helper()
	b, err := blocker.Find(id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// of is a step about a blocker.
func of(id, kind string, b blocker.Blocker) report.Step {
	return report.Step{ID: id, Kind: kind, Title: b.Title, Expected: string(b.Symptom)}
}

// ends waits for the end of the kubelet and returns what it printed.
func ends(n *node.Node) string {
	n.Await("the end of the kubelet", 60*time.Second, n.Kubelet.Ended)
	return n.Kubelet.Output()
}

// mustSee is a symptom with the rest of its line, as a program that has ended has
// printed it.
func mustSee(t *testing.T, b blocker.Blocker, log string) string {
	t.Helper()
	seen := b.Symptom.In(log)
	if seen == "" {
		t.Fatalf("the kubelet did not end with %q but with %s", b.Symptom, last(log))
	}
	return seen
}

// found gives a step the evidence and the fix of a blocker that bites: its probe has to
// say so too.
func found(t *testing.T, n *node.Node, b blocker.Blocker, s *step) {
	t.Helper()
	finding := n.Check()[b.ID]
	if finding.Answer != blocker.Found {
		t.Fatalf("%s bites, and its probe answers %s: %s", b.ID, finding.Answer, finding.Evidence)
	}
	s.Evidence = finding.Evidence
	if s.Fix == "" {
		s.Fix = finding.Action
	}
}

// last is the last error that a kubelet printed.
func last(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.HasPrefix(lines[i], "E") {
			_, text, _ := strings.Cut(lines[i], "] ")
			return text
		}
	}
	return node.Tail(log)
}

// The iterations that end a stock kubelet, one fix after the other in one sandbox.
func TestStock(t *testing.T) {
	n := node.Prepare(t, node.Options{Programs: stockPrograms, Without: []string{"cgroup-v1", "kmsg"}})
	n.StartContainerd()
	tunables, v1 := find(t, "tunables"), find(t, "cgroup-v1")
	baseline := of("iteration-1-baseline", report.Iteration, tunables)
	baseline.Fix = "see cgroup-v1, and cause-cadvisor"
	run(t, baseline, func(t *testing.T, s *step) {
		n.StartKubelet()
		log := ends(n)
		if s.Seen = tunables.Symptom.In(log); s.Seen != "" {
			s.Result = report.Reproduced
			return
		}
		s.Seen, s.Result = mustSee(t, v1, log), report.NotReproduced
		s.Evidence = "Kubernetes 1.36 ends before it gets to the kernel parameters; they are what is left with the cgroups and cAdvisor patches"
	})
	for _, fixed := range []struct {
		id, kind string
		blocker  blocker.Blocker
	}{
		{"cgroup-v1", report.Extra, v1},
		{"iteration-2-kmsg", report.Iteration, find(t, "kmsg")},
	} {
		run(t, of(fixed.id, fixed.kind, fixed.blocker), func(t *testing.T, s *step) {
			n.StartKubelet()
			s.Seen = mustSee(t, fixed.blocker, ends(n))
			found(t, n, fixed.blocker, s)
			n.FixOne(fixed.blocker.ID)
			n.StartKubelet()
			if log := ends(n); fixed.blocker.Symptom.In(log) != "" {
				t.Fatalf("fixed, and still there: %s", last(log))
			}
			s.Result = report.Reproduced
		})
	}
	files := find(t, "cgroup-files")
	rootfs := of("iteration-7-rootfs", report.Iteration, files)
	rootfs.Title, rootfs.Fix = "the kubelet ends, with all of that fixed", "no configuration: the patches, see cause-*"
	run(t, rootfs, func(t *testing.T, s *step) {
		found(t, n, files, s)
		n.Fix()
		n.StartKubelet()
		s.Seen, s.Result = mustSee(t, files, ends(n)), report.Reproduced
	})
}

// Each patch removes one cause, and the next one shows.
func TestOneCauseAtATime(t *testing.T) {
	n := node.Prepare(t, node.Options{Programs: map[string]string{
		stockKubelet: contract.KubeStock, cgroupsKubelet: contract.KubeCgroups, cadvisorKubelet: contract.KubeCAdvisor}})
	n.StartContainerd()
	for _, c := range []struct{ id, title, kubelet, blocker, fix string }{
		{"cause-stock", "no patch", stockKubelet, "cgroup-files", "the opencontainers/cgroups patches"},
		{"cause-cgroups", "opencontainers/cgroups patched", cgroupsKubelet, "root-filesystem", "and the cAdvisor patches"},
		{"cause-cadvisor", "opencontainers/cgroups and cAdvisor patched", cadvisorKubelet, "tunables", "and the Kubernetes patches"},
	} {
		b := find(t, c.blocker)
		run(t, report.Step{ID: c.id, Kind: report.Cause, Title: c.title, Expected: string(b.Symptom), Fix: c.fix}, func(t *testing.T, s *step) {
			n.StartOther(c.kubelet, "")
			s.Seen, s.Result = mustSee(t, b, ends(n)), report.Reproduced
			found(t, n, b, s)
		})
	}
	run(t, report.Step{ID: "cause-all", Kind: report.Cause, Title: "all patches", Expected: "a pod answers", Fix: "all patches"}, func(t *testing.T, s *step) {
		n.StartKubelet()
		n.AwaitHealthy()
		n.Run("web", node.Web())
		pod := n.AwaitRunning("web")
		answer, err := n.HTTP(pod, "/")
		if err != nil || answer != "web-"+node.Name {
			t.Fatalf("the pod answers %q, %v", answer, err)
		}
		s.Seen, s.Result = "healthz: ok; the pod answers "+answer, report.Passed
		s.Evidence = "healthz of the kubelet, and a pod that runs"
	})
}
