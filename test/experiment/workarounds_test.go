package experiment

import (
	"strings"
	"testing"

	"k3s9p/internal/config"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/report"
	"k3s9p/test/node"
)

// attempt is something that the experiment tried in vain against its last error.
type attempt struct {
	id, what, script string
	// helps says that it removes the second cause, the filesystem that cAdvisor does not
	// know: that shows once the first one, the cgroups, is patched.
	helps bool
	// refused are the words in which a sandbox may refuse the script itself, and result
	// what that is.
	refused, result string
	args            []string // of the kubelet
	settings        func(*config.Settings)
}

const makeOverlay = `mkdir -p /var/lib/kubelet /o/lower /o/upper /o/work &&
mount -t overlay overlay -o lowerdir=/o/lower,upperdir=/o/upper,workdir=/o/work /var/lib/kubelet`

// withoutEviction is the kubelet's configuration as the experiment typed it.
const withoutEviction = `grep -v -e eviction -e imageGC -e '^  [a-z]*fs\.' -e '^  memory\.' /etc/k3s9p/kubelet.yaml > /run/kubelet.yaml &&
printf 'evictionHard: {}\nimageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n' >> /run/kubelet.yaml`

// All but the last are tried in one sandbox, each in a mount namespace of its own.
var attempts = []attempt{
	{id: "workaround-bind", what: "bind mount of /var/lib/kubelet", script: "mkdir -p /var/lib/kubelet && mount --bind /var/lib/kubelet /var/lib/kubelet"},
	{id: "workaround-tmpfs", what: "tmpfs at /var/lib/kubelet", script: "mkdir -p /var/lib/kubelet && mount -t tmpfs tmpfs /var/lib/kubelet", helps: true},
	{id: "workaround-diskstats", what: "a made-up /proc/diskstats",
		script:  "echo > /run/diskstats && touch /proc/diskstats && mount --bind /run/diskstats /proc/diskstats",
		refused: "/proc/diskstats", result: report.NotReproduced},
	{id: "workaround-gc", what: "image garbage collection and eviction off", script: withoutEviction, args: []string{"--config=/run/kubelet.yaml"}},
	{id: "workaround-overlay", what: "an overlay over 9p at /var/lib/kubelet", script: makeOverlay, helps: true,
		refused: "wrong fs type", result: report.FailsAsExpected},
	{id: "workaround-tmpfs-data", what: "a data directory on tmpfs", script: "mkdir -p /data && mount -t tmpfs tmpfs /data", helps: true,
		settings: func(s *config.Settings) { s.Kubelet.RootDir, s.Containerd.Root = "/data/kubelet", "/data/containerd" }},
}

// Everything else is fixed; the stock kubelet ends all the same. Its first cause has
// nothing to do with filesystems, so each is tried again where that one is patched.
func TestWorkarounds(t *testing.T) {
	var n *node.Node
	for _, a := range attempts {
		if n == nil || a.settings != nil {
			n = node.Prepare(t, node.Options{Settings: a.settings, Programs: map[string]string{stockKubelet: contract.KubeStock, cgroupsKubelet: contract.KubeCgroups}})
			if a.settings != nil {
				n.Must("sh", "-c", a.script)
			}
			n.StartContainerd()
		}
		files, rootfs, tunables := find(t, "cgroup-files"), find(t, "root-filesystem"), find(t, "tunables")
		stock := report.Step{ID: a.id, Kind: report.Workaround, Title: a.what, Expected: string(files.Symptom), Fix: "none: " + a.what + " does not help"}
		run(t, stock, func(t *testing.T, s *step) {
			if log, ok := a.try(t, n, stockKubelet, s); ok {
				s.Seen, s.Result = mustSee(t, files, log), report.FailsAsExpected
			}
		})
		cgroups := report.Step{ID: a.id + "-cgroups", Kind: report.Workaround, Title: "the same, with the cgroups patched", Expected: string(rootfs.Symptom), Fix: "none: " + a.what + " does not help"}
		if a.helps {
			cgroups.Expected, cgroups.Fix = string(tunables.Symptom), a.what+", or the cAdvisor patches; the kernel parameters are next"
		}
		run(t, cgroups, func(t *testing.T, s *step) {
			log, ok := a.try(t, n, cgroupsKubelet, s)
			switch {
			case !ok:
			case a.helps:
				s.Seen, s.Result = mustSee(t, tunables, log), report.Helps
			default:
				s.Seen, s.Result = mustSee(t, rootfs, log), report.FailsAsExpected
			}
		})
	}
}

// try starts a kubelet after the script, and returns what it printed; it is not ok
// where the sandbox has refused the script itself, in the words that may be expected.
func (a attempt) try(t *testing.T, n *node.Node, kubelet string, s *step) (log string, ok bool) {
	script := a.script
	if a.settings != nil {
		script = "true" // it has run before containerd
	}
	n.StartOther(kubelet, script, a.args...)
	log = ends(n)
	s.Evidence = "sh: " + a.script
	if strings.Contains(log, "Kubelet version") { // its first line
		return log, true
	}
	if a.refused == "" || !strings.Contains(log, a.refused) {
		t.Fatalf("%s: %s", a.script, node.Tail(log))
	}
	s.Seen, s.Result = strings.TrimSpace(log), a.result
	return "", false
}
