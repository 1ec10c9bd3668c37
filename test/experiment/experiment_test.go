package experiment

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

const kubelet = "/usr/local/bin/kubelet"

// stockPrograms are the node's programs without any patch.
var stockPrograms = map[string]string{
	kubelet:                                  contract.KubeStock,
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

// ends waits for the end of the kubelet and returns what it printed.
func ends(n *node.Node) string {
	n.Await("the end of the kubelet", 60*time.Second, n.Kubelet.Ended)
	return n.Kubelet.Output()
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
	first := find(t, "tunables")
	step{ID: "iteration-1-baseline", Kind: iteration, Expected: string(first.Symptom), Fix: "see cgroup-v1, and cause-cadvisor"}.run(t, func(t *testing.T, s *step) {
		n.StartKubelet()
		log := ends(n)
		s.Seen, s.Result = last(log), notReproduced
		if first.Symptom.In(log) != "" {
			s.Result = reproduced
		}
		s.Evidence = "Kubernetes 1.36 ends before it gets to the kernel parameters; they are what is left with the cgroups and cAdvisor patches"
	})
	for _, fixed := range []struct{ id, blocker, kind string }{
		{"cgroup-v1", "cgroup-v1", extra},
		{"iteration-2-kmsg", "kmsg", iteration},
	} {
		b := find(t, fixed.blocker)
		step{ID: fixed.id, Kind: fixed.kind, Expected: string(b.Symptom)}.run(t, func(t *testing.T, s *step) {
			n.StartKubelet()
			log := ends(n)
			if s.Seen = b.Symptom.In(log); s.Seen == "" {
				t.Fatalf("the kubelet ended with %s", last(log))
			}
			finding := n.FixOne(b.ID)
			s.Evidence, s.Fix = finding.Evidence, finding.Action
			n.StartKubelet()
			if log := ends(n); b.Symptom.In(log) != "" {
				t.Fatalf("fixed, and still there: %s", last(log))
			}
			s.Result = reproduced
		})
	}
	b := find(t, "cgroup-files")
	step{ID: "iteration-7-rootfs", Kind: iteration, Expected: string(b.Symptom), Fix: "no configuration: the patches, see cause-*"}.run(t, func(t *testing.T, s *step) {
		s.Evidence = n.Fix()[b.ID].Evidence
		n.StartKubelet()
		log := ends(n)
		if s.Seen = b.Symptom.In(log); s.Seen == "" {
			t.Fatalf("the kubelet ended with %s", last(log))
		}
		s.Result = reproduced
	})
}

// What only a pod meets: everything is fixed but one, the pod does not run and says
// why, the fix is applied, and it runs. The kubelet is the patched one, because the
// stock one never gets to a pod here.
func TestPodBlockers(t *testing.T) {
	for _, c := range []struct {
		id, kind string
		blocker  string
		options  node.Options
		pod      func() corev1.PodSpec
		// also tries something else than the fix, and returns what came of it.
		also func(n *node.Node) string
	}{
		{id: "iteration-3-mount-propagation", kind: iteration, blocker: "mount-propagation", pod: bidirectional},
		{id: "iteration-4-disk-thresholds", kind: iteration, blocker: "disk-thresholds", pod: node.Web,
			options: node.Options{Sandbox: gvisor.Options{DiskGiB: 40, AvailableMiB: 2048}}},
		{id: "iteration-5-cni-plugins", kind: iteration, blocker: "cni-plugins", pod: node.Web, also: linkPlugins},
		{id: "unprivileged-ports", kind: extra, blocker: "unprivileged-ports", pod: node.Web},
	} {
		b := find(t, c.blocker)
		step{ID: c.id, Kind: c.kind, Expected: string(b.Symptom)}.run(t, func(t *testing.T, s *step) {
			c.options.Without = []string{b.ID}
			n := node.Start(t, c.options)
			n.Run("before", c.pod())
			s.Seen = n.AwaitSymptom(b.Symptom, 60*time.Second)
			finding := n.Fix()[b.ID]
			if finding.Answer != blocker.Found {
				t.Fatalf("the kubelet says %q, and the check %q", s.Seen, finding.Evidence)
			}
			s.Evidence, s.Fix = finding.Evidence, finding.Action
			if c.also != nil {
				s.Evidence += "; " + c.also(n)
			}
			n.Restart()
			n.Run("after", c.pod())
			n.AwaitRunning("after")
			s.Result = reproduced
		})
	}
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

// Programs without our patches, one at a time: the pod does not run; with the
// patched program it does.
func TestPatchedPrograms(t *testing.T) {
	for _, c := range []struct {
		blocker, program, file string
		pod                    func() corev1.PodSpec
		settings               func(*config.Settings)
	}{
		{blocker: "seccomp", program: "/usr/local/bin/runc", file: contract.RuncWithoutSeccomp, pod: confined},
		{blocker: "bridge-port", program: "/usr/local/lib/cni/bridge", file: contract.Stock("bridge"), pod: node.Web},
		{blocker: "preferred-source", program: "/usr/local/lib/cni/ptp", file: contract.Stock("ptp"), pod: node.Web,
			settings: func(s *config.Settings) { s.Network.Plugin = "ptp" }},
	} {
		b := find(t, c.blocker)
		step{ID: b.ID, Kind: extra, Expected: string(b.Symptom), Fix: b.Action}.run(t, func(t *testing.T, s *step) {
			stock := node.Start(t, node.Options{Programs: map[string]string{c.program: c.file}, Settings: c.settings})
			stock.Run("web", c.pod())
			s.Seen = stock.AwaitSymptom(b.Symptom, 60*time.Second)
			s.Evidence = stock.Check()[b.ID].Evidence
			patched := node.Start(t, node.Options{Settings: c.settings})
			patched.Run("web", c.pod())
			patched.AwaitRunning("web")
			s.Result = reproduced
		})
	}
}

// confined is a pod with a seccomp profile.
func confined() corev1.PodSpec {
	spec := node.Web()
	spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	return spec
}

// What the machine itself shows, without a program of the node.
func TestKernel(t *testing.T) {
	n := node.Prepare(t, node.Options{})
	findings := n.Check()
	overlay := findings["overlayfs"]
	step{ID: "iteration-6-overlayfs", Kind: iteration, Expected: "operation not permitted", Fix: overlay.Action}.run(t, func(t *testing.T, s *step) {
		s.Seen, s.Result = overlay.Evidence, notReproduced
		if overlay.Answer == blocker.Found {
			s.Result = reproduced
		}
		s.Evidence = "fuse-overlayfs, the experiment's fix: " + n.Must("inside", "fuse-overlayfs")
	})
	services := findings["services"]
	step{ID: "services", Kind: extra, Expected: "not supported", Fix: services.Action}.run(t, func(t *testing.T, s *step) {
		s.Seen, s.Evidence = services.Evidence, "the probe's own words"
		if services.Answer != blocker.Found || !strings.Contains(s.Seen, "not supported") {
			t.Fatalf("services: %s: %s", services.Answer, s.Seen)
		}
		s.Result = reproduced
	})
}

// Everything else is fixed; the stock kubelet ends all the same.
func TestWorkarounds(t *testing.T) {
	b := find(t, "cgroup-files")
	for _, c := range []struct {
		id, what string
		script   string
		fails    string // what the script itself may fail with
		settings func(*config.Settings)
	}{
		{id: "workaround-bind", what: "bind mount of /var/lib/kubelet", script: "mkdir -p /var/lib/kubelet && mount --bind /var/lib/kubelet /var/lib/kubelet"},
		{id: "workaround-tmpfs", what: "tmpfs at /var/lib/kubelet", script: "mkdir -p /var/lib/kubelet && mount -t tmpfs tmpfs /var/lib/kubelet"},
		{id: "workaround-tmpfs-data", what: "a data directory on tmpfs", script: "mkdir -p /data && mount -t tmpfs tmpfs /data",
			settings: func(s *config.Settings) { s.Kubelet.RootDir, s.Containerd.Root = "/data/kubelet", "/data/containerd" }},
		{id: "workaround-diskstats", what: "a made-up /proc/diskstats", script: "echo > /run/diskstats && touch /proc/diskstats && mount --bind /run/diskstats /proc/diskstats", fails: "/proc/diskstats"},
		{id: "workaround-gc", what: "image garbage collection and eviction off", script: "true",
			settings: func(s *config.Settings) { s.Kubelet.ForeignDisk = true }},
		{id: "workaround-overlay", what: "an overlay over 9p at /var/lib/kubelet",
			script: "mkdir -p /var/lib/kubelet /o/lower /o/upper /o/work && mount -t overlay overlay -o lowerdir=/o/lower,upperdir=/o/upper,workdir=/o/work /var/lib/kubelet"},
	} {
		step{ID: c.id, Kind: workaround, Expected: string(b.Symptom), Fix: "none: " + c.what + " does not help"}.run(t, func(t *testing.T, s *step) {
			n := node.Prepare(t, node.Options{Programs: stockPrograms, Settings: c.settings})
			output, err := n.Exec(t.Context(), "sh", "-c", c.script)
			if (err != nil) != (c.fails != "") || !strings.Contains(output, c.fails) {
				t.Fatalf("%s: %v\n%s", c.script, err, output)
			}
			s.Evidence = strings.TrimSpace("sh: " + c.script + "\n" + output)
			n.StartContainerd()
			n.StartKubelet()
			log := ends(n)
			if s.Seen = b.Symptom.In(log); s.Seen == "" {
				t.Fatalf("the kubelet ended with %s", last(log))
			}
			s.Result = failsAsExpected
		})
	}
}

// Each patch removes one cause, and the next one shows.
func TestOneCauseAtATime(t *testing.T) {
	for _, c := range []struct{ id, kubelet, blocker, fix string }{
		{"cause-stock", contract.KubeStock, "cgroup-files", "the opencontainers/cgroups patches"},
		{"cause-cgroups", contract.KubeCgroups, "root-filesystem", "and the cAdvisor patches"},
		{"cause-cadvisor", contract.KubeCAdvisor, "tunables", "and the Kubernetes patches"},
	} {
		b := find(t, c.blocker)
		step{ID: c.id, Kind: cause, Expected: string(b.Symptom), Fix: c.fix}.run(t, func(t *testing.T, s *step) {
			n := node.Prepare(t, node.Options{Programs: map[string]string{kubelet: c.kubelet}})
			n.StartContainerd()
			n.StartKubelet()
			log := ends(n)
			if s.Seen = b.Symptom.In(log); s.Seen == "" {
				t.Fatalf("the kubelet ended with %s", last(log))
			}
			s.Evidence, s.Result = n.Check()[b.ID].Evidence, reproduced
		})
	}
	step{ID: "cause-all", Kind: cause, Expected: "ok", Fix: "all patches"}.run(t, func(t *testing.T, s *step) {
		n := node.Start(t, node.Options{})
		s.Evidence = "healthz of the kubelet, and a pod that runs"
		n.Run("web", node.Web())
		pod := n.AwaitRunning("web")
		if answer, err := n.HTTP(pod, "/"); err != nil || answer != "web-"+node.Name {
			t.Fatalf("the pod answers %q, %v", answer, err)
		}
		s.Seen, s.Result = "ok", passed
	})
}
