package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// A Node that is made before the kubelet has the labels and taints that the kubelet would
// have given it, from wherever it is told them.
func TestRegistration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("K3S_CONFIG_FILE", file)
	write := func(name, text string) {
		t.Helper()
		if err := writeFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gpu := corev1.Taint{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule}
	of := func(distribution string, o Options) registration {
		t.Helper()
		n := &Node{cluster: Cluster{Distribution: distribution}, options: o}
		r, err := n.registration()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	check := func(what string, got registration, labels map[string]string, taints ...corev1.Taint) {
		t.Helper()
		if diff := cmp.Diff(labels, got.labels) + cmp.Diff(taints, got.taints); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("nothing", of("kubernetes", Options{}), map[string]string{})
	kubelet := Options{KubeletArgs: []string{"node-labels=a=b,c=d", "--register-with-taints=gpu=yes:NoSchedule", "max-pods=20"}}
	check("the kubelet's flags", of("kubernetes", kubelet), map[string]string{"a": "b", "c": "d"}, gpu)
	check("the same with k3s", of(k3sName, kubelet), map[string]string{"a": "b", "c": "d"}, gpu)
	flags := Options{K3sArgs: []string{"--node-label", "a=b", "--node-label=c=d", "--node-taint", "gpu=yes:NoSchedule", "node-label"}}
	check("flags of k3s", of(k3sName, flags), map[string]string{"a": "b", "c": "d"}, gpu)
	check("flags of k3s for kubernetes", of("kubernetes", flags), map[string]string{})

	write(file, "node-label: [a=file, x=file]\nnode-taint: gpu=yes:NoSchedule\nnode-name: other\n")
	check("a file", of(k3sName, Options{}), map[string]string{"a": "file", "x": "file"}, gpu)
	check("a file and flags", of(k3sName, flags), map[string]string{"a": "b", "c": "d", "x": "file"}, gpu)
	check("a file of k3s for kubernetes", of("kubernetes", Options{}), map[string]string{})
	write(file+".d/1.yaml", "node-label+: [y=more]\n")
	check("one that adds", of(k3sName, Options{}), map[string]string{"a": "file", "x": "file", "y": "more"}, gpu)
	write(file+".d/2.yml", "node-label: z=only\n")
	check("one that replaces", of(k3sName, Options{}), map[string]string{"z": "only"}, gpu)

	write(file, "node-label: [\n")
	n := &Node{cluster: Cluster{Distribution: k3sName}}
	if _, err := n.registration(); err == nil {
		t.Error("a file that is no YAML is no error")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	check("only what is beside it", of(k3sName, Options{}), map[string]string{"z": "only"})
}
