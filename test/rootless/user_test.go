package rootless

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	corev1 "k8s.io/api/core/v1"

	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// A user that is not root, as docker run --user gives one, has one id: what that carries
// is a node whose containers are root's.
func TestUser(t *testing.T) {
	root := gvisor.OverlayRoot
	if gvisor.Old() {
		root = gvisor.NinePRoot
	}
	registry := gvisor.NewRegistry(t)
	c := cluster.Start(t, gvisor.Options{Docker: true, User: 1000, Root: root, Files: map[string]string{
		"/root/workload.yaml":                "=" + workload,
		"/etc/ssl/certs/ca-certificates.crt": "=" + registry.CA,
	}})
	registry.Serve(c.Outside)
	before := c.Snapshot()
	t.Run("check and a dry run say what one id is", func(t *testing.T) {
		for _, args := range [][]string{{"check"}, {"up", "--dry-run"}} {
			output, err := c.K3s9p(args...)
			for _, says := range []string{"without privileges, in namespaces of its own: this process is not root", "users: 1, groups: 1", "images whose files belong to others than root do not unpack"} {
				if err != nil || !strings.Contains(output, says) {
					t.Errorf("k3s9p %v: %v, and it does not say %q\n%s", args, err, says, output)
				}
			}
		}
		here := []string{"places", "cgroup-mounts", "cgroup-v1", "kmsg", "mount-propagation", "disk-thresholds", "overlayfs", "cgroup-files", "tunables",
			"terminals", "ids", "unprivileged-ports", "bridge-port", "preferred-source", "masquerade", "services", "bridged"}
		if gvisor.Old() { // and its root is on 9p
			here = append(here, "root-filesystem", "tmpfs-options", "link-kind")
		}
		c.Finds(here)
		c.Unchanged(before)
	})
	c.Up()
	pods := deploy(c)
	t.Run("egress", func(t *testing.T) { egress(t, c, pods[0]) })
	web := gvisor.LoadWebImage(t)
	t.Run("an image of one user is pulled and runs", func(t *testing.T) {
		run(c, "pulled", registry.Push("web", web))
		c.Kubectl("wait", "--for=condition=ready", "pod/pulled", "--timeout=60s")
	})
	t.Run("an image with a file of another user is named, with the id", func(t *testing.T) {
		image := registry.Push("several", gvisor.WithFileOf(t, web, 1001))
		run(c, "several", image)
		awaitEvent(c, t, "several", "Failed", image, "UID 1001")
	})
	t.Run("an image that runs as another user is named, with the id", func(t *testing.T) {
		config, err := web.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.Config.User = "1002"
		other, err := mutate.ConfigFile(web, config)
		if err != nil {
			t.Fatal(err)
		}
		image := registry.Push("other", other)
		run(c, "other", image)
		awaitEvent(c, t, "other", "IDNotMapped", image, "user 1002")
	})
	t.Run("down leaves nothing", func(t *testing.T) {
		if output, err := c.K3s9p("down", "--purge"); err != nil {
			t.Fatalf("k3s9p down --purge: %v\n%s", err, output)
		}
		c.Unchanged(before)
	})
}

// run makes a pod of an image that is pulled.
func run(c *cluster.Cluster, name, image string) {
	c.Kubectl("run", name, "--image="+image, "--restart=Never")
}

// awaitEvent waits for an event about an object that says something.
func awaitEvent(c *cluster.Cluster, t *testing.T, object, reason string, says ...string) {
	t.Helper()
	var events corev1.EventList
	said := func() bool {
		c.Get(&events, "events", "--field-selector=involvedObject.name="+object)
		return slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
			return e.Reason == reason && !slices.ContainsFunc(says, func(text string) bool { return !strings.Contains(e.Message, text) })
		})
	}
	for deadline := time.Now().Add(time.Minute); !said(); time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			for _, e := range events.Items {
				t.Logf("event %s: %s", e.Reason, e.Message)
			}
			t.Errorf("there is no event %s about %s that says %q", reason, object, says)
			return
		}
	}
}
