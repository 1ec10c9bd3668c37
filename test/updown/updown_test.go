package updown

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

const data = "/var/lib/k3s9p"

// cycles is how often the cluster is brought up and down.
const cycles = 20

func snapshot(c *cluster.Cluster) string { return c.Must("inside", "snapshot", data) }

// unchanged compares the machine with an earlier snapshot. What the kernel takes
// away a moment later, such as the devices of a network namespace, has that moment.
func unchanged(t *testing.T, c *cluster.Cluster, before string) {
	t.Helper()
	var diff string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if diff = cmp.Diff(strings.Split(before, "\n"), strings.Split(snapshot(c), "\n")); diff == "" {
			return
		}
	}
	t.Errorf("the machine is not as it was:\n%s", diff)
}

func TestUpDown(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	before := snapshot(c)
	t.Run("nothing to do", func(t *testing.T) {
		for _, args := range [][]string{{"down"}, {"down", "--purge"}, {"status"}} {
			if output, err := c.K3s9p(args...); err != nil {
				t.Errorf("k3s9p %v: %v\n%s", args, err, output)
			}
		}
		unchanged(t, c, before)
	})
	t.Run("a pod and a second start", func(t *testing.T) {
		c.Up()
		c.Kubectl("run", "web", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
		c.Kubectl("wait", "--for=condition=ready", "pod/web", "--timeout=60s")
		during := snapshot(c)
		for _, trace := range []string{"device cni0", "device veth", "process containerd-shim", "cgroup /sys/fs/cgroup/memory/k3s9p/kubepods", "rule -A K3S9P-PREROUTING", "file /dev/kmsg"} {
			if !strings.Contains(during, trace) {
				t.Errorf("there is no %q to be left: the comparison would prove nothing", trace)
			}
		}
		down(t, c)
		unchanged(t, c, before)
		c.Up()
		c.Kubectl("wait", "--for=condition=ready", "pod/web", "--timeout=60s")
		c.Kubectl("delete", "pod", "web", "--now")
		down(t, c)
		unchanged(t, c, before)
	})
	t.Run("SIGKILL of the supervisor, then down", func(t *testing.T) {
		c.Up()
		c.Kubectl("run", "killed", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
		c.Kubectl("wait", "--for=condition=ready", "pod/killed", "--timeout=60s")
		c.Must("pkill", "-KILL", "-f", "^k3s9p-supervisor")
		if output, err := c.K3s9p("status"); err != nil || !strings.Contains(output, "was killed") {
			t.Errorf("status says %q, %v", output, err)
		}
		down(t, c)
		unchanged(t, c, before)
	})
	t.Run("SIGKILL of the supervisor, then up", func(t *testing.T) {
		c.Up()
		c.Must("pkill", "-KILL", "-f", "^k3s9p-supervisor")
		c.Up()
		c.Kubectl("wait", "--for=condition=ready", "pod/killed", "--timeout=60s")
		down(t, c)
		unchanged(t, c, before)
	})
	t.Run("Ctrl-C in the middle", func(t *testing.T) {
		for _, when := range []string{"check and fix", "make the pod network", "make certificates"} {
			up := c.Background(cluster.Program, "up")
			c.Await(when, time.Minute, func() bool { return up.Ended() || strings.Contains(up.Output(), when) })
			up.Signal("INT")
			c.Await("the end of up", time.Minute, up.Ended)
			if !strings.Contains(up.Output(), "interrupted") {
				t.Errorf("up printed %s", up.Output())
			}
			unchanged(t, c, before)
		}
	})
	t.Run("Ctrl-C of a cluster in the foreground", func(t *testing.T) {
		up := c.Background(cluster.Program, "up")
		c.Await("Ready", time.Minute, func() bool { return up.Ended() || strings.Contains(up.Output(), "the cluster is ready") })
		if output, err := c.K3s9p("up"); err == nil || !strings.Contains(output, "runs already") {
			t.Errorf("a second up gives %v, and prints %s", err, output)
		}
		up.Signal("INT")
		c.Await("the end of up", time.Minute, up.Ended)
		unchanged(t, c, before)
	})
	t.Run("an image archive that is none", func(t *testing.T) {
		bad := cluster.Images + "/bad.tar"
		c.Write(bad, "no archive")
		output, err := c.K3s9p("up", "--detach", "--images="+cluster.Images)
		if err == nil || !strings.Contains(output, "import the images in "+bad) || !strings.Contains(output, "hint: ") {
			t.Errorf("up gives %v, and prints %s", err, output)
		}
		c.Must("rm", bad)
		unchanged(t, c, before)
	})
	t.Run("again and again", func(t *testing.T) {
		var slowest time.Duration
		for range cycles {
			slowest = max(slowest, c.Up())
			down(t, c)
		}
		unchanged(t, c, before)
		t.Logf("the slowest of %d starts took %.1f s", cycles, slowest.Seconds())
	})
	t.Run("purge", func(t *testing.T) {
		if output, err := c.K3s9p("down", "--purge"); err != nil {
			t.Fatalf("k3s9p down --purge: %v\n%s", err, output)
		}
		if output, err := c.Try(time.Minute, "ls", "-A", data); err == nil {
			t.Errorf("%s has still %s", data, output)
		}
		unchanged(t, c, before)
	})
}

// Where the node has mounted the cgroups itself, they are gone with its mount
// namespace, and the containers have to be found otherwise.
func TestKilledWithoutCgroups(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{NoCgroups: true})
	before := snapshot(c)
	c.Up()
	c.Kubectl("run", "killed", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
	c.Kubectl("wait", "--for=condition=ready", "pod/killed", "--timeout=60s")
	if !strings.Contains(snapshot(c), "process web") {
		t.Error("no container runs that could be left: the comparison would prove nothing")
	}
	c.Must("pkill", "-KILL", "-f", "^k3s9p-supervisor")
	down(t, c)
	unchanged(t, c, before)
}

func down(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if output, err := c.K3s9p("down"); err != nil {
		t.Fatalf("k3s9p down: %v\n%s", err, output)
	}
}
