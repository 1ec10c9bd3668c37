package linux9p

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"k3s9p/internal/blocker"
	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
	"k3s9p/test/qemu"
)

// Where the machine has k3s9p, what the pods run, and the programs without patches.
const (
	program = "/root/k3s9p"
	images  = "/root/images"
	stock   = "/root/kube-stock"
)

// patience is how long k3s9p may take: the processor may be emulated.
const patience = 12 * time.Minute

type machine struct {
	*qemu.Machine
	t *testing.T
}

func start(t *testing.T, security qemu.Security, cache qemu.Cache) machine {
	t.Helper()
	return machine{qemu.Start(t, qemu.Options{Security: security, Cache: cache, Files: map[string]string{
		program:             gvisor.Program(contract.Launcher),
		images + "/web.tar": gvisor.Program(contract.WebImage),
		stock:               gvisor.Program(contract.KubeStock),
	}}), t}
}

func (m machine) k3s9p(args ...string) string {
	m.t.Helper()
	output, err := m.Try(patience, append([]string{program}, args...)...)
	if err != nil {
		m.t.Fatalf("k3s9p %v: %v\n%s\n%s", args, err, output, m.logs())
	}
	return output
}

func (m machine) logs() string {
	output, _ := m.Try(time.Minute, "sh", "-c", "for l in /var/lib/k3s9p/log/*.log; do echo \"== $l\"; tail -n 8 $l; done")
	return output
}

func (m machine) up(args ...string) (string, error) {
	return m.Try(patience, append([]string{program, "up", "--detach", "--wait=10m", "--images=" + images}, args...)...)
}

// findings are what check says of each blocker.
func (m machine) findings() map[string]blocker.Finding {
	m.t.Helper()
	output, _ := m.Try(patience, program, "check", "-o", "json") // a blocker without a fix is an error as well
	var check struct {
		Findings []blocker.Finding `json:"findings"`
	}
	if err := json.NewDecoder(strings.NewReader(output)).Decode(&check); err != nil {
		m.t.Fatalf("k3s9p check: %v\n%s", err, output)
	}
	found := make(map[string]blocker.Finding)
	for _, f := range check.Findings {
		found[f.ID] = f
	}
	return found
}

const pod = `apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: web, image: "k3s9p.local/web:1", ports: [{containerPort: 8080}]}
`

// runsPods runs one, and asks it by way of the apiserver.
func (m machine) runsPods() {
	m.t.Helper()
	m.Must("sh", "-c", `printf %s "$0" > /tmp/pod.yaml`, pod)
	m.k3s9p("kubectl", "apply", "-f", "/tmp/pod.yaml")
	m.k3s9p("kubectl", "wait", "--for=condition=Ready", "pod/web", "--timeout=5m")
	const question = "/api/v1/namespaces/default/pods/web:8080/proxy/"
	if answer := m.k3s9p("kubectl", "get", "--raw", question); !strings.Contains(answer, "web") {
		m.t.Errorf("the pod answers %q", answer)
	}
	if output := m.k3s9p("ctr", "containers", "list", "--quiet"); strings.TrimSpace(output) == "" {
		m.t.Error("ctr lists no containers")
	}
}

func TestNode(t *testing.T) {
	for _, test := range []struct {
		security qemu.Security
		found    []string
	}{
		{qemu.Passthrough, []string{"sockets", "overlayfs", "root-filesystem", "disk-thresholds"}},
		{qemu.MappedXattr, []string{"overlayfs", "root-filesystem", "disk-thresholds"}},
	} {
		t.Run(string(test.security), func(t *testing.T) {
			m := start(t, test.security, qemu.MmapCache)
			findings := m.findings()
			for _, id := range test.found {
				if f := findings[id]; f.Answer != blocker.Found {
					t.Errorf("%s: %s: %s", id, f.Answer, f.Evidence)
				}
			}
			output, err := m.up()
			if err != nil {
				t.Fatalf("k3s9p up: %v\n%s\n%s", err, output, m.logs())
			}
			t.Log(output)
			m.runsPods()
			m.k3s9p("down")
			if test.security == qemu.Passthrough {
				m.needsThePatch()
			}
		})
	}
}

// needsThePatch puts programs without any patch in the place of the node's, and brings
// it up.
func (m machine) needsThePatch() {
	m.t.Helper()
	m.Must("sh", "-c", `for f in /var/lib/k3s9p/bundle/*/bin/kube; do mount --bind "$0" $f; done`, stock)
	output, err := m.up("--wait=4m")
	cause, findErr := blocker.Find("root-filesystem")
	if findErr != nil {
		m.t.Fatal(findErr)
	}
	said := cause.Symptom.In(output + m.logs())
	if err == nil || said == "" {
		m.t.Fatalf("a node of stock programs came up, or ended otherwise than by its root filesystem: %v\n%s\n%s", err, output, m.logs())
	}
	m.t.Logf("without the patches: %s", said)
}

// TestNoSharedMemory has a root that no database can be on.
func TestNoSharedMemory(t *testing.T) {
	m := start(t, qemu.Passthrough, qemu.NoCache)
	if f := m.findings()["shared-memory"]; f.Answer != blocker.Found {
		t.Fatalf("shared-memory: %s: %s", f.Answer, f.Evidence)
	}
	output, err := m.up()
	if err == nil || !strings.Contains(output, "cache=mmap") {
		t.Fatalf("k3s9p up: %v, and no word of what helps:\n%s", err, output)
	}
}
