package experiment

import (
	"strings"
	"testing"
	"time"

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
}
