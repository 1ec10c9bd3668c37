package experiment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/report"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

// Containers live in overlays on 9p. Where this gVisor refuses them, containerd says so;
// with the fix a pod runs.
func TestOverlay(t *testing.T) {
	b := find(t, "overlayfs")
	run(t, of("iteration-6-overlayfs", report.Iteration, b), func(t *testing.T, s *step) {
		n := node.Prepare(t, node.Options{Without: []string{b.ID}})
		n.StartContainerd()
		n.StartKubelet()
		n.Run("before", node.Web())
		s.Evidence = "fuse-overlayfs, the experiment's fix: " + n.Must("inside", "fuse-overlayfs")
		finding := n.Check()[b.ID]
		s.Fix = finding.Action
		if finding.Answer != blocker.Found {
			n.AwaitRunning("before")
			s.Seen, s.Result = finding.Evidence+"; a pod runs in an overlay", report.NotReproduced
			return
		}
		s.Seen = n.AwaitSymptom(b.Symptom, 60*time.Second)
		s.Evidence = finding.Evidence + "; " + s.Evidence
		n.Fix()
		n.Restart()
		n.Run("after", node.Web())
		n.AwaitRunning("after")
		s.Result = report.Reproduced
	})
}

// linkIptables makes the plain iptables, which is not there without an installed
// package's alternatives: the legacy one, because gVisor has its tables only.
const linkIptables = "for i in iptables ip6tables; do for p in '' -save -restore; do ln -s $(command -v $i-legacy$p) /usr/local/bin/$i$p; done; done"

// What a cluster has for Services and for networks of several nodes: kube-proxy in each
// of its modes, beside an apiserver, and the device that flannel makes.
func TestNetwork(t *testing.T) {
	if !today() {
		return
	}
	const proxy = "/usr/local/stock/kube-proxy"
	c := cluster.Start(t, gvisor.Options{Files: map[string]string{proxy: gvisor.Program(contract.KubeStock)}})
	c.Up()
	c.Must("sh", "-c", "umask 077 && "+cluster.Program+" kubeconfig > /root/kubeconfig")
	c.Must("sh", "-c", linkIptables)
	b := find(t, "services")
	for _, mode := range []struct{ name, expected string }{
		{"iptables", "can't set sysctl net/ipv4/conf/all/route_localnet"},
		{"ipvs", "can't use the IPVS proxier"},
		{"nftables", "could not run nftables command"},
	} {
		services := report.Step{ID: "services-" + mode.name, Kind: report.Extra, Title: "kube-proxy in its mode " + mode.name,
			Expected: mode.expected, Fix: b.Action}
		run(t, services, func(t *testing.T, s *step) {
			kubeProxy := c.Background(proxy, "--kubeconfig=/root/kubeconfig", "--hostname-override=sandbox", "--proxy-mode="+mode.name,
				"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
			c.Await("kube-proxy's own words", 60*time.Second, func() bool {
				s.Seen = blocker.Symptom(mode.expected).In(kubeProxy.Output())
				return s.Seen != "" || kubeProxy.Ended()
			})
			if s.Seen == "" {
				t.Fatalf("kube-proxy ended with %s", node.Tail(kubeProxy.Output()))
			}
			if !kubeProxy.Ended() {
				kubeProxy.Stop()
			}
			s.Result = report.Reproduced
		})
	}
	vxlan := report.Step{ID: "vxlan", Kind: report.Extra, Title: "no VXLAN devices, which flannel makes by default",
		Expected: "Operation not supported", Fix: "the pod network is a bridge on this node"}
	run(t, vxlan, func(t *testing.T, s *step) {
		output, err := c.Try(time.Minute, "ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "nolearning")
		if s.Seen = strings.TrimSpace(output); err == nil || !strings.Contains(output, s.Expected) {
			t.Fatalf("ip link add … type vxlan: %v: %s", err, output)
		}
		s.Evidence, s.Result = "ip link add flannel.1 type vxlan, as flannel does", report.Reproduced
	})
	bridged := find(t, "bridged")
	run(t, of(bridged.ID, report.Extra, bridged), func(t *testing.T, s *step) {
		c.Apply("web", cluster.Web(2, ""))
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		var pods corev1.PodList
		c.Get(&pods, "pods", "--selector=app=web")
		from, to := pods.Items[0], pods.Items[1].Status.PodIP+":8080"
		ask := func(path string) string {
			answer, err := c.AskPod(from, path+to)
			if err != nil {
				t.Fatalf("the pod %s: %v: %s", from.Name, err, answer)
			}
			return answer
		}
		count := func() int { return strings.Count(ask("/datagram?text=hello&to="), pods.Items[1].Name) }
		const jump = "K3S9P-FORWARD"
		c.Must("iptables-legacy", "-D", "FORWARD", "-j", jump)
		before := count()
		c.Await("a connection between two pods that is reset", 2*time.Minute, func() bool {
			s.Seen = bridged.Symptom.In(ask("/load?s=5&url=http://"))
			return s.Seen != ""
		})
		c.Must("iptables-legacy", "-I", "FORWARD", "-j", jump)
		if after := count(); before == 1 || after != 1 {
			t.Fatalf("a datagram from pod to pod is answered %d times, and %d times with the rule", before, after)
		}
		if seen := bridged.Symptom.In(ask("/load?s=10&url=http://")); seen != "" {
			t.Fatalf("with the rule: %s", seen)
		}
		s.Evidence = fmt.Sprintf("a datagram from pod to pod is answered %d times, and once with the rule", before)
		s.Fix, s.Result = "nothing is forwarded from the bridge to itself", report.Reproduced
	})
}
