package hungmount

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"testing"
	"time"

	"k3s9p/test/gvisor"
	"k3s9p/test/node"
)

// What a node meets when a server behind its mounts goes away: in every sample the
// kubelet asks the 9p filesystem, through our plugin, and an overlay on it, through
// upstream's; and gVisor asks the first lower layer for an overlay without an upper one
// (pkg/sentry/fsimpl/overlay, statFS).
func TestHungMount(t *testing.T) {
	const silent, overlay = "/mnt/silent", "/mnt/overlay"
	n := node.Start(t, node.Options{Sandbox: gvisor.Options{SilentAt: silent}})
	n.Run("web", node.Web())
	n.AwaitRunning("web")
	n.Kubelet.Stop() // who waits for the silent filesystem cannot be ended
	n.Must("mkdir", "-p", overlay)
	n.Must("mount", "-t", "overlay", "overlay", "-o", "ro,lowerdir="+silent+":/usr/share", overlay)
	n.Silence() // only now: whoever mounts asks as well

	for _, point := range []string{silent, overlay} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := n.Exec(ctx, "inside", "statfs", point); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("statfs of %s was answered: %v", point, err)
		}
	}
	n.StartKubelet() // it finds both in the mount table
	n.AwaitHealthy()
	n.Await("a sample that asks both mounts", 60*time.Second, func() bool { return len(waiting(n)) >= 2 })
	for range 2 {
		awaitSample(n)
	}
	if held := waiting(n); len(held) != 2 {
		t.Errorf("after two further samples two silent mounts hold %d goroutines of the kubelet, and a thread each: %v", len(held), held)
	}
	n.CheckFilesystem()
	n.Run("later", node.Web())
	n.AwaitRunning("later")
	n.AwaitHealthy()
}

// awaitSample waits until the kubelet has taken another sample of the node's filesystem.
func awaitSample(n *node.Node) {
	last := n.Summary().Node.Fs.Time
	n.Await("another sample", 2*time.Minute, func() bool { return n.Summary().Node.Fs.Time.After(last.Time) })
}

// In the text of net/http/pprof a goroutine begins with its number and what it does.
var inStatfs = regexp.MustCompile(`(?m)^goroutine (\d+) \[syscall.*\n(?:.+\n)*?(?:syscall|golang\.org/x/sys/unix)\.Statfs\(`)

// waiting are the numbers of the kubelet's goroutines that wait for an answer of
// statfs: those that do so twice, because any may ask just now.
func waiting(n *node.Node) []string {
	before, now := asking(n), asking(n)
	return slices.DeleteFunc(now, func(id string) bool { return !slices.Contains(before, id) })
}

func asking(n *node.Node) []string {
	stacks := n.Ask(node.Serving + "/debug/pprof/goroutine?debug=2")
	var found []string
	for _, match := range inStatfs.FindAllStringSubmatch(stacks, -1) {
		found = append(found, match[1])
	}
	return found
}
