package native

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/leftover"
	"k3s9p/internal/rmtree"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// Machine is this one, in a network namespace that has eth0 to another one.
type Machine struct {
	t               *testing.T
	inside, outside string // paths of the namespaces
	Data            string // the directory of the node's data
}

// Start makes the namespaces. Nothing runs yet.
func Start(t *testing.T) *Machine {
	t.Helper()
	gvisor.Require(t)
	m := &Machine{t: t, Data: gvisor.NodeData(t)}
	m.inside, m.outside = gvisor.Network(t, filepath.Dir(m.Data))
	t.Cleanup(func() {
		if output, err := m.K3s9p("down", "--purge"); err != nil {
			t.Errorf("k3s9p down --purge: %v\n%s", err, output)
		}
		if err := rmtree.Tree(filepath.Dir(m.Data)); err != nil {
			t.Error(err)
		}
	})
	return m
}

// In runs a command in the namespace of the cluster; it may fail.
func (m *Machine) In(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + m.inside, "--"}, args...)...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := leftover.Run(filepath.Dir(m.Data), cmd)
	return output.String(), err
}

// Outside calls f in the network namespace on the other end of eth0.
func (m *Machine) Outside(f func() error) error { return gvisor.Within(m.outside, f) }

// K3s9p runs it, and may fail.
func (m *Machine) K3s9p(args ...string) (string, error) {
	return m.In(append([]string{gvisor.Program(contract.Launcher), "--data-dir=" + m.Data}, args...)...)
}

// Kubectl has to succeed.
func (m *Machine) Kubectl(args ...string) string {
	m.t.Helper()
	output, err := m.K3s9p(append([]string{"kubectl"}, args...)...)
	if err != nil {
		warnings, _ := m.K3s9p(append([]string{"kubectl"}, cluster.Warnings...)...)
		m.t.Fatalf("kubectl %v: %v\n%s\n%s", args, err, output, warnings)
	}
	return output
}

func (m *Machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}
