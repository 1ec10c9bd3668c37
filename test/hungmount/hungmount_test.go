package hungmount

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k3s9p/test/node"
)

func TestHungMount(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Run("web", node.Web())
	n.AwaitRunning("web")
	n.Must("mkdir", "/mnt")
	server := n.Background("/usr/local/bin/inside", "hang", "/mnt")
	n.Await("the mount", 10*time.Second, func() bool { return strings.Contains(server.Output(), "mounted") })

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := n.Exec(ctx, "inside", "statfs", "/mnt"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("statfs of the mount was answered: %v", err)
	}
	silent := func() int { return strings.Count(server.Output(), "statfs: no answer") }
	byUs := silent()
	// A kubelet that finds the mount when it starts.
	n.Kubelet.Stop()
	n.StartKubelet()
	n.AwaitHealthy()
	n.CheckFilesystem()
	n.Run("later", node.Web())
	n.AwaitRunning("later")
	n.AwaitHealthy()
	if silent() == byUs {
		t.Error("the kubelet did not ask the mount: it was not tested")
	}
	server.Stop()
}
