package cluster

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/test/gvisor"
)

// move lets a pod download or upload, and returns bytes and MB/s.
func (c *Cluster) move(t *testing.T, pod corev1.Pod, path string) (bytes int64, rate float64) {
	t.Helper()
	answer, err := c.AskPod(pod, path)
	var seconds float64
	if err == nil {
		_, err = fmt.Sscan(answer, &bytes, &seconds)
	}
	if err != nil {
		t.Fatalf("%s in a pod: %v\n%s", path, err, answer)
	}
	return bytes, float64(bytes) / 1e6 / max(seconds, 1e-3)
}

// slowest is the rate, in MB/s, below which the pod network is broken and not slow:
// gVisor's own forwarding gives 0.03.
const slowest = 5

func (c *Cluster) egress(t *testing.T, pods []corev1.Pod) {
	gvisor.ServeOutside(t, c.Outside)
	const mib = 50
	server := gvisor.OutsideAddress + ":8080"
	other := pods[1].Status.PodIP + ":8080"
	for _, way := range []struct{ name, path string }{
		{"down", fmt.Sprintf("/download?url=http://%s/bytes%%3Fmib=%d", server, mib)},
		{"up", fmt.Sprintf("/upload?url=http://%s/receive&mib=%d", server, mib)},
		{"between pods", fmt.Sprintf("/download?url=http://%s/bytes%%3Fmib=%d", other, mib)},
	} {
		t.Run(way.name, func(t *testing.T) {
			bytes, rate := c.move(t, pods[0], way.path)
			if bytes != mib<<20 {
				t.Errorf("%d bytes came of %d", bytes, mib<<20)
			}
			if rate < slowest {
				t.Errorf("%.2f MB/s: the network is broken", rate)
			}
			t.Logf("%.0f MB/s", rate)
		})
	}
	t.Run("datagrams", func(t *testing.T) {
		answer, err := c.AskPod(pods[0], "/datagram?to="+server+"&text=hello")
		if err != nil || answer != "hello" {
			t.Errorf("a datagram came back as %q, %v", answer, err)
		}
	})
}
