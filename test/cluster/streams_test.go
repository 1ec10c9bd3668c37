package cluster

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// streams runs kubectl exec with its input, logs -f and port-forward, in the
// sandbox.
func (c *Cluster) streams(t *testing.T, pod corev1.Pod) {
	t.Run("exec", func(t *testing.T) {
		output, err := c.Try(time.Minute, "sh", "-c", "yes line | head -n 20000 | "+Program+" kubectl exec -i "+pod.Name+" -- /web echo | wc -l")
		if err != nil || strings.TrimSpace(output) != "20000" {
			t.Errorf("of 20000 lines %q came back, %v", output, err)
		}
	})
	t.Run("logs -f", func(t *testing.T) {
		follow := c.Background(Program, "kubectl", "logs", "--follow", "--tail=0", pod.Name)
		const agent = "asked-while-following"
		c.Await("a line of the log", time.Minute, func() bool {
			_, _ = c.AskPod(pod, "/?"+agent)
			return strings.Contains(follow.Output(), agent)
		})
		follow.Stop()
	})
	t.Run("port-forward", func(t *testing.T) {
		forward := c.Background(Program, "kubectl", "port-forward", "pod/"+pod.Name, "18080:8080")
		c.Await("the port", time.Minute, func() bool { return strings.Contains(forward.Output(), "Forwarding from") })
		if answer, err := c.Try(30*time.Second, "inside", "http", "GET", "http://127.0.0.1:18080/"); err != nil || answer != pod.Name {
			t.Errorf("it answers %q, %v", answer, err)
		}
		forward.Stop()
	})
}
