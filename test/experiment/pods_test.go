package experiment

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/report"
	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

// What only a pod meets: everything is fixed but one, the pod does not run and says
// why, the fix is applied, and it runs. The kubelet is the patched one, because the
// stock one never gets to a pod here.
func TestPodBlockers(t *testing.T) {
	if !today() {
		return
	}
	for _, c := range []struct {
		id, kind string
		blocker  string
		pod      func() corev1.PodSpec
		// also tries something else than the fix, and returns what came of it.
		also func(n *node.Node) string
	}{
		{id: "iteration-3-mount-propagation", kind: report.Iteration, blocker: "mount-propagation", pod: bidirectional},
		{id: "iteration-5-cni-plugins", kind: report.Iteration, blocker: "cni-plugins", pod: node.Web, also: linkPlugins},
		{id: "unprivileged-ports", kind: report.Extra, blocker: "unprivileged-ports", pod: node.Web},
	} {
		b := find(t, c.blocker)
		run(t, of(c.id, c.kind, b), func(t *testing.T, s *step) {
			n := node.Start(t, node.Options{Without: []string{b.ID}})
			n.Run("before", c.pod())
			s.Seen = n.AwaitSymptom(b.Symptom, 60*time.Second)
			found(t, n, b, s)
			n.Fix()
			if c.also != nil {
				s.Evidence += "; " + c.also(n)
			}
			n.Restart()
			n.Run("after", c.pod())
			n.AwaitRunning("after")
			s.Result = report.Reproduced
		})
	}
}

// The plugin of the pod network is told to masquerade what leaves it, as most
// configurations tell theirs: it does not find its program, and where that is installed
// the kernel refuses its rules.
func TestMasquerade(t *testing.T) {
	const refused = blocker.Symptom("running […iptables -t nat…]: exit status…not supported")
	b := find(t, "masquerade")
	run(t, of("masquerade", report.Extra, b), func(t *testing.T, s *step) {
		n := node.Prepare(t, node.Options{})
		without := n.Read(n.Network())
		with := strings.Replace(without, `"ipMasq": false`, `"ipMasq": true`, 1)
		if with == without {
			t.Fatalf("%s has no ipMasq: %s", n.Network(), without)
		}
		n.Write(n.Network(), with)
		n.StartContainerd()
		n.StartKubelet()
		n.Run("before", node.Web())
		s.Seen = n.AwaitSymptom(b.Symptom, 60*time.Second)
		found(t, n, b, s)
		n.Must("sh", "-c", linkIptables)
		s.Evidence = n.AwaitSymptom(refused, 60*time.Second) + "; " + s.Evidence
		n.Fix()
		n.Restart()
		n.Run("after", node.Web())
		n.AwaitRunning("after")
		s.Result = report.Reproduced
	})
}

// linkPlugins does what the experiment did first: links instead of copies. The
// containerd that runs still looks in /opt/cni/bin.
func linkPlugins(n *node.Node) string {
	n.Must("sh", "-c", "mkdir -p /opt/cni/bin && ln -s /usr/local/lib/cni/* /opt/cni/bin/")
	n.Run("linked", node.Web())
	n.AwaitRunning("linked")
	return "with links in /opt/cni/bin to the plugins a pod runs as well"
}

// bidirectional is a pod with a mount that is passed on in both directions.
func bidirectional() corev1.PodSpec {
	spec, both, privileged := node.Web(), corev1.MountPropagationBidirectional, true
	spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
	spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "both", MountPath: "/both", MountPropagation: &both}}
	spec.Volumes = []corev1.Volume{{Name: "both", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}}}}
	return spec
}

// The kubelet deletes an image only when it has known it for a while, 2 minutes by
// default: here for a second, so that the test need not wait.
const deleteSoon = "imageMinimumGCAge: 1s\n"

// On a disk that others have nearly filled the kubelet wants to evict pods and deletes
// images; after the fix it does neither.
func TestNearlyFullDisk(t *testing.T) {
	if !today() {
		return
	}
	const deleted = blocker.Symptom("Removing image to free bytes")
	b := find(t, "disk-thresholds")
	run(t, of("iteration-4-disk-thresholds", report.Iteration, b), func(t *testing.T, s *step) {
		n := node.Prepare(t, node.Options{Without: []string{b.ID}, Sandbox: gvisor.Options{DiskGiB: 40, AvailableMiB: 2048}})
		n.StartContainerd()
		n.Write(n.Config(), n.Read(n.Config())+deleteSoon)
		n.StartKubelet() // without a pod: an image in use is not deleted
		s.Seen = n.AwaitSymptom(b.Symptom, 60*time.Second)
		n.AwaitSymptom(deleted, 60*time.Second)
		n.Await("the end of the image", 30*time.Second, func() bool { return !strings.Contains(images(n), node.Image) })
		found(t, n, b, s)
		s.Evidence += "; images were deleted, and are not after the fix"
		n.Fix()
		n.Write(n.Config(), n.Read(n.Config())+deleteSoon)
		n.Restart()
		n.Run("after", node.Web())
		n.AwaitRunning("after")
		log := n.Kubelet.Output()
		if seen := b.Symptom.In(log) + deleted.In(log); seen != "" || !strings.Contains(images(n), node.Image) {
			t.Fatalf("after the fix: %s; images: %s", seen, images(n))
		}
		s.Result = report.Reproduced
	})
}

func images(n *node.Node) string {
	return n.Must("ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io", "images", "ls")
}

// Programs without our patches, one at a time: the pod does not run; with the patched
// program in the same place it does.
func TestPatchedPrograms(t *testing.T) {
	cases := []struct {
		blocker, program, file, patched string
		pod                             func() corev1.PodSpec
		settings                        func(*config.Settings)
	}{
		{blocker: "seccomp", program: "/usr/local/bin/runc", file: contract.RuncWithoutSeccomp, patched: contract.Runc, pod: confined},
		{blocker: "bridge-port", program: "/usr/local/lib/cni/bridge", file: contract.Stock("bridge"), patched: "bridge", pod: node.Web},
		{blocker: "preferred-source", program: "/usr/local/lib/cni/ptp", file: contract.Stock("ptp"), patched: "ptp", pod: node.Web,
			settings: func(s *config.Settings) { s.Network.Plugin = "ptp" }},
	}
	if !today() { // a stock bridge fails earlier there, and the others as they do today
		cases = cases[1:2]
		cases[0].blocker = "link-kind"
	}
	for _, c := range cases {
		b := find(t, c.blocker)
		run(t, of(b.ID, report.Extra, b), func(t *testing.T, s *step) {
			const patched = "/usr/local/patched"
			n := node.Start(t, node.Options{Programs: map[string]string{c.program: c.file, patched: c.patched}, Settings: c.settings})
			n.Run("before", c.pod())
			s.Seen = n.AwaitSymptom(b.Symptom, 60*time.Second)
			found(t, n, b, s)
			n.Must("sh", "-c", "cp "+patched+" "+c.program+".new && mv "+c.program+".new "+c.program)
			n.Run("after", c.pod())
			n.AwaitRunning("after")
			s.Result = report.Reproduced
		})
	}
}

// confined is a pod with a seccomp profile.
func confined() corev1.PodSpec {
	spec := node.Web()
	spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	return spec
}
