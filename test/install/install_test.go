package install

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// The releases on the page.
const first, second = "v0.0.1", "v0.0.2"

// installed is where install.sh puts the program.
const installed = "/usr/local/bin/k3s9p"

// limit is how long it may take from the first byte that is downloaded until the node is
// Ready, on a machine that does something else as well: 25 s are for one that does not
// (docs/measured.md).
const limit = time.Minute

// machine is a sandbox that has nothing of k3s9p but what it downloads.
type machine struct {
	*cluster.Cluster
	t *testing.T
	*page
}

func start(t *testing.T) *machine {
	t.Helper()
	gvisor.Require(t)
	p := newPage(t)
	certificate := p.certify()
	p.publish(first)
	p.publish(second)
	c := cluster.StartWithout(t, gvisor.Options{Files: map[string]string{"/root/page.crt": "=" + string(p.trust)}})
	p.serve(c.Outside, certificate)
	return &machine{c, t, p}
}

// install types what the README says, and may fail.
func (m *machine) install(version string) (string, error) {
	const script = `set -e; cd /root; export CURL_CA_BUNDLE=/root/page.crt; curl --fail --silent --show-error --remote-name "$0/$1/install.sh"; sh install.sh`
	output, err := m.Try(time.Minute, "sh", "-c", script, m.url, version)
	m.t.Logf("install.sh of %s: %v\n%s", version, err, output)
	return output, err
}

func (m *machine) installs(version string) {
	m.t.Helper()
	output, err := m.install(version)
	if err != nil || !strings.Contains(output, "k3s9p "+version+" is in "+installed) {
		m.t.Fatalf("install.sh: %v\n%s", err, output)
	}
	m.Must("ln", "-sf", installed, cluster.Program)
	if output := m.Must(installed, "version"); !strings.HasPrefix(output, "k3s9p "+version+"\n") {
		m.t.Errorf("what was installed says it is %s", output)
	}
}

// pods are the running pods of the Deployment: their names by their identities.
func (m *machine) pods() map[string]string {
	m.t.Helper()
	var list corev1.PodList
	m.Get(&list, "pods", "--selector=app=web")
	pods := make(map[string]string)
	for _, pod := range list.Items {
		pods[string(pod.UID)] = pod.Name
	}
	return pods
}

// says runs the installed program.
func (m *machine) says(args ...string) string {
	m.t.Helper()
	output, err := m.K3s9p(args...)
	if err != nil {
		m.t.Fatalf("k3s9p %v: %v\n%s", args, err, output)
	}
	return output
}

// One sandbox for all: each part goes on where the one before has ended.
func TestInstall(t *testing.T) {
	m := start(t)
	t.Run("a release that somebody else has signed", func(t *testing.T) {
		m.sign(first, m.newKey())
		if output, err := m.install(first); err == nil || !strings.Contains(output, "the signature of "+first+" is wrong") {
			t.Errorf("install.sh: %v\n%s", err, output)
		}
		if output := m.Must("ls", "-A", "/usr/local/bin"); strings.Contains(output, "k3s9p") {
			t.Errorf("it has left %s", output)
		}
		m.sign(first, m.key)
	})
	t.Run("download, up, Ready, down", func(t *testing.T) {
		began := time.Now()
		m.installs(first)
		downloaded := time.Since(began)
		m.Up()
		took := time.Since(began)
		t.Attr("result", fmt.Sprintf("Ready %.1f s after the first byte, %.1f s of them for download and check", took.Seconds(), downloaded.Seconds()))
		if took > limit {
			t.Errorf("download to Ready took %v, more than %v", took, limit)
		}
		m.Kubectl("create", "configmap", "settings", "--from-literal=colour=red")
		m.Apply("web", cluster.Web(2, "settings"))
		m.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	})
	pods := m.pods()
	if len(pods) != 2 {
		t.Fatalf("there are the pods %v", slices.Collect(maps.Values(pods)))
	}
	t.Run("a newer release goes on", func(t *testing.T) {
		m.installs(second)
		said := m.says("version", "--check")
		for _, want := range []string{"this file  " + second + ", ", "running    " + first + ", ", "next: k3s9p down, then k3s9p up"} {
			if !strings.Contains(said, want) {
				t.Errorf("version --check of a newer release does not say %q:\n%s", want, said)
			}
		}
		m.Down()
		if said := m.says("version", "--check"); !strings.Contains(said, "on disk    "+first+", ") {
			t.Errorf("version --check when it is down says\n%s", said)
		}
		m.Up()
		if colour := m.Kubectl("get", "configmap", "settings", "--output=jsonpath={.data.colour}"); colour != "red" {
			t.Errorf("the ConfigMap has %q", colour)
		}
		m.Kubectl("wait", "--for=condition=ready", "pod", "--selector=app=web", "--timeout=60s")
		if diff := cmp.Diff(pods, m.pods()); diff != "" {
			t.Errorf("the pods are other ones:\n%s", diff)
		}
		for _, name := range pods {
			// The cluster remembers a pod as ready until the kubelet says otherwise: its
			// container may not run again yet.
			m.Await("the end of a program in the pod "+name, time.Minute, func() bool {
				answer, err := m.K3s9p("kubectl", "exec", name, "--", "/web", "once")
				return err == nil && strings.TrimSpace(answer) == "done"
			})
		}
		if said := m.says("version", "--check"); !strings.Contains(said, "running    "+second+", ") || strings.Contains(said, "next:") {
			t.Errorf("version --check after the upgrade says\n%s", said)
		}
		m.Down()
	})
	t.Run("an older release refuses", func(t *testing.T) {
		m.installs(first)
		before := m.Snapshot()
		output, err := m.K3s9p("up", "--detach")
		if err == nil || !strings.Contains(output, "was brought up by a newer k3s9p ("+second+", ") || !strings.Contains(output, "hint: use that one") {
			t.Errorf("up of an older release: %v\n%s", err, output)
		}
		m.Unchanged(before)
		if said := m.says("version", "--check"); !strings.Contains(said, "this file  "+first+", ") || !strings.Contains(said, "on disk    "+second+", ") {
			t.Errorf("version --check of an older release says\n%s", said)
		}
	})
}
