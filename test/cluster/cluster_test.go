package cluster

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/node"
	"k3s9p/test/gvisor"
)

// pods are the running pods of the Deployment.
func (c *Cluster) pods() []corev1.Pod {
	c.t.Helper()
	var list corev1.PodList
	c.Get(&list, "pods", "--selector=app=web", "--field-selector=status.phase=Running")
	var live []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			live = append(live, pod)
		}
	}
	return live
}

// What there is to find in a sandbox depends on its age.
func TestCheck(t *testing.T) {
	c := Start(t, gvisor.Options{})
	here := []string{"cgroup-v1", "kmsg", "mount-propagation", "disk-thresholds", "cgroup-files", "root-filesystem", "tunables",
		"unprivileged-ports", "bridge-port", "preferred-source", "masquerade", "services", "bridged", "memory-limits"}
	if gvisor.Old() {
		here = append(here, "overlayfs", "tmpfs-options", "link-kind")
	}
	c.Finds(here)
}

// One cluster for all: each part says what it protects.
func TestCluster(t *testing.T) { everything(t, gvisor.Options{}) }

// The same without privileges, in namespaces of the node's own: see scenario rootless for
// what is different there. k3s is refused.
func TestWithoutPrivileges(t *testing.T) {
	options := gvisor.Options{Docker: true}
	if gvisor.Distribution() != "k3s" {
		everything(t, options)
		return
	}
	if output, err := Start(t, options).K3s9p("up", "--detach"); err == nil || !strings.Contains(output, "starts with the privileges of root only") {
		t.Errorf("up of k3s gives %v, and prints %s", err, output)
	}
}

// datastore counts the connections to kine: one for all resources, and those of the
// probes of health and of compaction.
func (c *Cluster) datastore(t *testing.T) {
	connections := 0
	for line := range strings.Lines(c.Must("cat", "/proc/net/unix")) {
		// Num RefCount Protocol Flags Type St Inode Path (proc_net_unix(5)); 03 is connected.
		if fields := strings.Fields(line); len(fields) == 8 && fields[5] == "03" && strings.HasSuffix(fields[7], "/kine.sock") {
			connections++
		}
	}
	if connections == 0 || connections > 8 {
		t.Errorf("the apiserver has %d connections to the datastore", connections)
	}
}

func everything(t *testing.T, options gvisor.Options) {
	c := Start(t, options)
	c.Up()
	t.Run("the node is Ready", func(t *testing.T) {
		if output := c.Kubectl("get", "nodes"); !strings.Contains(output, " Ready ") {
			t.Errorf("kubectl get nodes says %s", output)
		} else {
			t.Log("\n" + output)
		}
	})
	if !options.Docker && gvisor.Distribution() != "k3s" { // there the sockets are in another namespace, here in the same process
		t.Run("few connections to the datastore", c.datastore)
	}
	c.Kubectl("create", "configmap", "settings", "--from-literal=colour=red")
	c.Apply("web", Web(3, "settings"))
	t.Run("a Deployment of three pods runs", func(t *testing.T) {
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		if pods := c.pods(); len(pods) != 3 {
			t.Fatalf("%d pods run", len(pods))
		}
	})
	pods := c.pods()
	t.Run("the node and pods reach pods", func(t *testing.T) {
		for _, pod := range pods {
			if answer, err := c.AskPod(pod, "/"); err != nil || answer != pod.Name {
				t.Errorf("the pod %s answers the node with %q, %v", pod.Name, answer, err)
			}
			if answer, err := c.AskPod(pods[0], "/get?url=http://"+pod.Status.PodIP+":8080/"); err != nil || answer != pod.Name {
				t.Errorf("the pod %s answers another pod with %q, %v", pod.Name, answer, err)
			}
		}
	})
	t.Run("what a pod sends to another arrives once", func(t *testing.T) {
		to := pods[1].Status.PodIP + ":8080"
		if answer, err := c.AskPod(pods[0], "/datagram?text=hello&to="+to); err != nil || answer != pods[1].Name {
			t.Errorf("the pod %s answers a datagram of another pod with %q, %v", pods[1].Name, answer, err)
		}
		answers, err := c.AskPod(pods[0], "/load?s=5&url=http://"+to+"/")
		if lines := strings.Split(strings.TrimSpace(answers), "\n"); err != nil || len(lines) != 2 || !strings.HasSuffix(lines[1], " "+pods[1].Name) {
			t.Errorf("the pod %s answers another pod's connections with %s, %v", pods[1].Name, answers, err)
		}
	})
	t.Run("egress", func(t *testing.T) { c.egress(t, pods) })
	t.Run("a ConfigMap's change is seen in the pod", func(t *testing.T) {
		read := func() string {
			answer, _ := c.AskPod(pods[0], "/file?path=/settings/colour")
			return answer
		}
		if colour := read(); colour != "red" {
			t.Fatalf("the pod reads %q", colour)
		}
		c.Kubectl("patch", "configmap", "settings", `--patch={"data":{"colour":"blue"}}`)
		// The kubelet looks at a pod's volumes once a minute; a change of the pod's
		// own makes it look now.
		c.Kubectl("annotate", "pod", pods[0].Name, "look=now")
		c.Await("the change", 2*time.Minute, func() bool { return read() == "blue" })
	})
	t.Run("streams", func(t *testing.T) { c.streams(t, pods[0]) })
	t.Run("names resolve in pods", func(t *testing.T) {
		answer, err := c.AskPod(pods[0], "/lookup?name=kubernetes.default")
		if err != nil || answer != "10.43.0.1" {
			t.Errorf("kubernetes.default is %q, %v", answer, err)
		}
	})
	t.Run("an image archive that appears is imported", func(t *testing.T) {
		c.Must("cp", Images+"/web.tar", Images+"/later.tar")
		c.Await("the import", time.Minute, func() bool {
			log, err := c.K3s9p("logs", "k3s9p")
			return err == nil && strings.Contains(log, `msg="imported images" archive=`+Images+"/later.tar")
		})
	})
	t.Run("Services", func(t *testing.T) { c.services(t, pods) })
	t.Run("volumes", c.volumes)
	t.Run("a Job ends", func(t *testing.T) {
		c.Kubectl("create", "job", "once", "--image=k3s9p.local/web:1", "--", "/web", "once")
		c.Kubectl("wait", "--for=condition=complete", "job/once", "--timeout=60s")
		if log := c.Kubectl("logs", "job/once"); strings.TrimSpace(log) != "done" {
			t.Errorf("the Job printed %q", log)
		}
	})
	t.Run("scale and roll out", func(t *testing.T) {
		c.Kubectl("scale", "deployment/web", "--replicas=2")
		c.Await("two pods", time.Minute, func() bool { return len(c.pods()) == 2 })
		c.Kubectl("rollout", "restart", "deployment/web")
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	})
}

// The same program in sandboxes of other kinds: what is different is decided by
// probes.
func TestOtherSandboxes(t *testing.T) {
	for _, s := range []struct {
		name    string
		options gvisor.Options
		blocker string // that is found in this one
		tmpfs   bool   // images are kept in memory
	}{
		{"overlay root", gvisor.Options{Root: gvisor.OverlayRoot}, "overlayfs", true},
		{"no cgroups mounted", gvisor.Options{NoCgroups: true}, "cgroup-mounts", false},
	} {
		t.Run(s.name, func(t *testing.T) {
			c := Start(t, s.options)
			c.Up()
			var state node.State
			status, err := c.K3s9p("status", "-o", "json")
			if err == nil {
				err = json.Unmarshal([]byte(status), &state)
			}
			if err != nil || state.Plan == nil {
				t.Fatalf("status: %v\n%s", err, status)
			}
			found := slices.ContainsFunc(state.Plan.Findings, func(f blocker.Finding) bool { return f.ID == s.blocker && f.Answer == blocker.Found })
			if !found || (state.Plan.Settings.Containerd.Tmpfs > 0) != s.tmpfs {
				t.Errorf("status: %v\n%s", err, status)
			}
			c.Kubectl("create", "configmap", "settings", "--from-literal=colour=red")
			c.Apply("web", Web(3, "settings"))
			c.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
			if pods := c.pods(); len(pods) != 3 {
				t.Errorf("%d pods run", len(pods))
			}
			if output, err := c.K3s9p("down", "--purge"); err != nil {
				t.Errorf("k3s9p down --purge: %v\n%s", err, output)
			}
		})
	}
}
