package updown

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// cycles is how often the cluster is brought up and down.
const cycles = 20

func TestUpDown(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	before := c.Snapshot()
	t.Run("nothing to do", func(t *testing.T) {
		for _, args := range [][]string{{"down"}, {"down", "--purge"}, {"status"}} {
			if output, err := c.K3s9p(args...); err != nil {
				t.Errorf("k3s9p %v: %v\n%s", args, err, output)
			}
		}
		c.Unchanged(before)
	})
	planned := check(c)
	t.Run("a pod and a second start", func(t *testing.T) {
		c.Up()
		if diff := cmp.Diff(planned, done(t, c)); diff != "" {
			t.Errorf("what is done is not what was planned:\n%s", diff)
		}
		c.Kubectl("run", "web", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
		c.Kubectl("wait", "--for=condition=ready", "pod/web", "--timeout=60s")
		during := c.Snapshot()
		for _, trace := range []string{"device cni0", "device veth", "process containerd-shim", "cgroup /sys/fs/cgroup/memory/k3s9p/kubepods", "rule -A K3S9P-PREROUTING", "file /dev/kmsg"} {
			if !strings.Contains(during, trace) {
				t.Errorf("there is no %q to be left: the comparison would prove nothing", trace)
			}
		}
		c.Down()
		c.Unchanged(before)
		c.Up()
		c.Kubectl("wait", "--for=condition=ready", "pod/web", "--timeout=60s")
		c.Kubectl("delete", "pod", "web", "--now")
		c.Down()
		c.Unchanged(before)
	})
	t.Run("SIGKILL of the supervisor, then down", func(t *testing.T) {
		c.Up()
		c.Kubectl("run", "killed", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
		c.Kubectl("wait", "--for=condition=ready", "pod/killed", "--timeout=60s")
		c.KillSupervisor()
		if output, err := c.K3s9p("status"); err != nil || !strings.Contains(output, "was killed") {
			t.Errorf("status says %q, %v", output, err)
		}
		if diff := cmp.Diff(planned, check(c)); diff != "" {
			t.Errorf("after a SIGKILL another plan is made:\n%s", diff)
		}
		c.Down()
		c.Unchanged(before)
	})
	t.Run("SIGKILL of the supervisor, then up", func(t *testing.T) {
		c.Up()
		c.KillSupervisor()
		c.Up()
		c.Kubectl("wait", "--for=condition=ready", "pod/killed", "--timeout=60s")
		c.Down()
		c.Unchanged(before)
	})
	t.Run("Ctrl-C in the middle", func(t *testing.T) {
		for _, when := range []string{"check and fix", "make the pod network", "make certificates"} {
			up := c.Background(cluster.Program, "up")
			c.Await(when, 3*time.Minute, func() bool { return up.Ended() || strings.Contains(up.Output(), when) })
			up.Signal("INT")
			c.Await("the end of up", time.Minute, up.Ended)
			if !strings.Contains(up.Output(), "interrupted") {
				t.Errorf("up printed %s", up.Output())
			}
			c.Unchanged(before)
		}
	})
	t.Run("Ctrl-C of a cluster in the foreground", func(t *testing.T) {
		up := c.Background(cluster.Program, "up")
		c.Await("Ready", 3*time.Minute, func() bool { return up.Ended() || strings.Contains(up.Output(), "the cluster is ready") })
		if output, err := c.K3s9p("up"); err == nil || !strings.Contains(output, "runs already") {
			t.Errorf("a second up gives %v, and prints %s", err, output)
		}
		up.Signal("INT")
		c.Await("the end of up", time.Minute, up.Ended)
		c.Unchanged(before)
	})
	t.Run("an image archive that is none", func(t *testing.T) {
		bad := cluster.Images + "/bad.tar"
		c.Write(bad, "no archive")
		output, err := c.K3s9p("up", "--detach", "--images="+cluster.Images)
		if err == nil || !strings.Contains(output, "import the images in "+bad) || !strings.Contains(output, "hint: ") {
			t.Errorf("up gives %v, and prints %s", err, output)
		}
		c.Must("rm", bad)
		c.Unchanged(before)
	})
	t.Run("again and again", func(t *testing.T) {
		var slowest time.Duration
		for range cycles {
			slowest = max(slowest, c.Up())
			c.Down()
		}
		c.Unchanged(before)
		t.Logf("the slowest of %d starts took %.1f s", cycles, slowest.Seconds())
	})
	t.Run("purge", func(t *testing.T) {
		if output, err := c.K3s9p("down", "--purge"); err != nil {
			t.Fatalf("k3s9p down --purge: %v\n%s", err, output)
		}
		if output, err := c.Try(time.Minute, "ls", "-A", cluster.Data); err == nil {
			t.Errorf("%s has still %s", cluster.Data, output)
		}
		c.Unchanged(before)
	})
}

// Where the node has mounted the cgroups itself, they are gone with its mount
// namespace, and the containers have to be found otherwise.
func TestKilledWithoutCgroups(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{NoCgroups: true})
	before := c.Snapshot()
	c.Up()
	c.Kubectl("run", "killed", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
	c.Kubectl("wait", "--for=condition=ready", "pod/killed", "--timeout=60s")
	if !strings.Contains(c.Snapshot(), "process web") {
		t.Error("no container runs that could be left: the comparison would prove nothing")
	}
	c.KillSupervisor()
	c.Down()
	c.Unchanged(before)
}

// plan is what two plans have to agree on: not what was seen, which moves.
type plan struct {
	Changes  []string
	Choices  map[string]string
	Settings config.Settings
}

// check is the plan that up would follow.
func check(c *cluster.Cluster) plan {
	var p blocker.Plan
	c.Ask(&p, "check")
	return planOf(p)
}

// done is the plan that was followed.
func done(t *testing.T, c *cluster.Cluster) plan {
	t.Helper()
	state := c.Status()
	if state.Plan == nil {
		t.Fatal("status has no plan")
	}
	return planOf(*state.Plan)
}

func planOf(p blocker.Plan) plan {
	result := plan{Choices: make(map[string]string), Settings: p.Settings}
	for _, change := range p.Changes {
		result.Changes = append(result.Changes, change.What)
	}
	for _, choice := range p.Choices {
		result.Choices[choice.Subject] = choice.Value
	}
	return result
}
