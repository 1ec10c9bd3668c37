package release

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The manifest in docs/ is a pod, with the image of the release that it is about.
func TestPod(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "pod.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(data, &pod); err != nil {
		t.Fatal(err)
	}
	changelog, err := os.ReadFile(filepath.Join("..", "..", changelogName))
	if err != nil {
		t.Fatal(err)
	}
	version, err := Version(changelog)
	if err != nil {
		t.Fatal(err)
	}
	if got := pod.Spec.Containers[0].Image; got != imageReference(version) {
		t.Errorf("the image is %s, not %s", got, imageReference(version))
	}
}
