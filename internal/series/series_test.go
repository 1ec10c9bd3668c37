package series

import (
	"path/filepath"
	"testing"
)

// The modules of this repository are found by the end of their paths, also where a fork
// of one has the same end.
func TestFind(t *testing.T) {
	for name, want := range map[string]string{
		"cadvisor": "github.com/google/cadvisor", "plugins": "github.com/containernetworking/plugins",
		"github.com/rancher/plugins": "github.com/rancher/plugins", "cgroups/v3": "github.com/containerd/cgroups/v3",
	} {
		if p, err := find(filepath.Join("..", ".."), name); err != nil || p.Pin.Path != want {
			t.Errorf("%s is %s, %v", name, p.Pin.Path, err)
		}
	}
	if p, err := find(filepath.Join("..", ".."), "nothing"); err == nil {
		t.Errorf("nothing is %s", p.Pin.Path)
	}
}
