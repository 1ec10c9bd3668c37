package crash

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/node"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// back is how long a cluster may take until it is as it was.
const back = 30 * time.Second

// A check that is killed at any moment leaves nothing after the next down.
func TestKilledChecks(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	before := c.Snapshot()
	began := time.Now()
	if output, err := c.K3s9p("check"); err != nil {
		t.Fatalf("k3s9p check: %v\n%s", err, output)
	}
	took := time.Since(began)
	t.Logf("k3s9p check took %.1f s", took.Seconds())
	const times = 10
	killed := 0
	for i := range times {
		after := fmt.Sprintf("%.3f", (took * time.Duration(i+1) / times).Seconds())
		if _, err := c.Try(time.Minute, "timeout", "--signal=KILL", after, cluster.Program, "check"); err != nil {
			killed++
		}
	}
	if killed < times/4 {
		t.Errorf("%d of %d checks were killed", killed, times)
	}
	c.Down()
	c.Unchanged(before)
}

func TestCrash(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	c.Up()
	c.Kubectl("create", "configmap", "kept", "--from-literal=colour=red")
	c.Kubectl("run", "web", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
	c.Kubectl("wait", "--for=condition=ready", "pod/web", "--timeout=60s")
	before := objects(c)

	programs := c.Status().Programs
	if fewest := map[string]int{"kubernetes": 3, "k3s": 2}[gvisor.Distribution()]; len(programs) < fewest || fewest == 0 {
		t.Fatalf("%d programs run", len(programs))
	}
	for _, p := range programs {
		t.Run("SIGKILL of "+p.Name, func(t *testing.T) {
			pid := 0 // not that of the beginning: another one's end may have ended it too
			running := func() bool { pid = pidOf(c, p.Name); return pid != 0 }
			c.Await(p.Name, back, running)
			killed := pid
			c.Must("kill", "-KILL", fmt.Sprint(killed))
			began := time.Now()
			c.Await(p.Name+" again", back, func() bool { return running() && pid != killed })
			awaitSame(t, c, before)
			t.Logf("back after %.1f s", time.Since(began).Seconds())
		})
	}
	t.Run("SIGKILL of all, then up", func(t *testing.T) {
		s := c.Status()
		all := []string{"kill", "-KILL", fmt.Sprint(s.PID)}
		for _, p := range s.Programs {
			all = append(all, fmt.Sprint(p.PID))
		}
		if _, err := c.Try(time.Minute, all...); err != nil { // they end with the supervisor
			t.Log(err)
		}
		c.Await("the end of the supervisor", time.Minute, func() bool { return c.Status().Phase == node.Killed })
		began := time.Now()
		c.Up()
		awaitSame(t, c, before)
		if took := time.Since(began); took > back {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("after a reboot", func(t *testing.T) {
		c.KillSupervisor()
		// What the kernel forgets is not there any more. What is there with the same
		// name is somebody else's.
		c.Must("sh", "-c", `cd "$0"/fixes && sed -i 's/"boot":"[^"]*"/"boot":"an earlier one"/' *.json
			ip link delete cni0 && ip link add cni0 type bridge && echo 1 > /proc/sys/net/ipv4/ip_forward`, cluster.Data)
		c.Down()
		if output, err := c.Try(time.Minute, "ip", "link", "show", "cni0"); err != nil {
			t.Errorf("somebody else's bridge is gone: %s", output)
		}
		if forward := c.Read("/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(forward) != "1" {
			t.Errorf("ip_forward is %q, as it was before that boot", forward)
		}
		if output, err := c.Try(time.Minute, "ls", cluster.Data+"/fixes"); err != nil || strings.TrimSpace(output) != "" {
			t.Errorf("there are still records: %s", output)
		}
	})
}

// pidOf is the process of one of the node's programs; 0 while that does not run.
func pidOf(c *cluster.Cluster, name string) int {
	for _, p := range c.Status().Programs {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

// objects identifies what has to be there again: the same objects, not only equal
// ones.
func objects(c *cluster.Cluster) string {
	output, err := c.TryKubectl("get", "configmap/kept", "pod/web", "-o", "jsonpath={.items[*].metadata.uid}")
	if err != nil {
		return err.Error()
	}
	return output
}

// awaitSame waits until the node is Ready, and what was there is there.
func awaitSame(t *testing.T, c *cluster.Cluster, before string) {
	t.Helper()
	c.Await("the same objects on a node that is Ready", back, func() bool {
		output, err := c.TryKubectl("get", "nodes,pods", "-o", "json")
		var list corev1.List
		if err != nil || json.Unmarshal([]byte(output), &list) != nil {
			return false
		}
		ready := 0
		for _, item := range list.Items {
			var object struct {
				Status struct {
					Conditions []struct{ Type, Status string }
				}
			}
			if json.Unmarshal(item.Raw, &object) != nil {
				return false
			}
			for _, condition := range object.Status.Conditions {
				if condition.Type == "Ready" && condition.Status == "True" {
					ready++
				}
			}
		}
		return ready == 2 && objects(c) == before
	})
}
