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
	// A kubelet finds the mount in the table when it starts. It asks FUSE mounts only
	// where a path on them is in question (docs/filesystems.md); what happens then is
	// tested with the patched cAdvisor itself (overlay/cadvisor/fs/generic).
	n.Kubelet.Stop()
	n.StartKubelet()
	n.AwaitHealthy()
	n.CheckFilesystem(node.SharedDisk)
	n.Run("later", node.Web())
	n.AwaitRunning("later")
	n.AwaitHealthy()
	server.Stop()
}
