package overlayroot

import (
	"testing"

	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

func TestOverlayRoot(t *testing.T) {
	n := node.Start(t, node.Options{Sandbox: gvisor.Options{Root: gvisor.OverlayRoot}})
	n.CheckFilesystem()
	n.Run("web", node.Web())
	pod := n.AwaitRunning("web")
	if answer, err := n.HTTP(pod, "/"); err != nil || answer != "web-"+node.Name {
		t.Errorf("the pod answers %q, %v", answer, err)
	}
	t.Attr("result", "snapshotter chosen by probe: "+n.Check()["overlayfs"].Evidence)
}
