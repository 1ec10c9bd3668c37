package cluster

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/test/gvisor"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, volumeMounts: [{name: settings, mountPath: /settings}]}
      volumes: [{name: settings, configMap: {name: settings}}]
`

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

// One cluster for all: each part says what it protects.
func TestCluster(t *testing.T) {
	c := Start(t, gvisor.Options{})
	c.Up()
	t.Run("the node is Ready", func(t *testing.T) {
		if output := c.Kubectl("get", "nodes", "--no-headers"); !strings.Contains(output, " Ready ") {
			t.Errorf("kubectl get nodes says %s", output)
		}
	})
	c.Kubectl("create", "configmap", "settings", "--from-literal=colour=red")
	c.Apply("web", deployment)
	t.Run("a Deployment of three pods runs", func(t *testing.T) {
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		if pods := c.pods(); len(pods) != 3 {
			t.Fatalf("%d pods run", len(pods))
		}
	})
	pods := c.pods()
	t.Run("the node and pods reach pods", func(t *testing.T) {
		for _, pod := range pods {
			if answer, err := c.HTTP(pod.Status.PodIP, "/"); err != nil || answer != pod.Name {
				t.Errorf("the pod %s answers the node with %q, %v", pod.Name, answer, err)
			}
			if answer, err := c.HTTP(pods[0].Status.PodIP, "/get?url=http://"+pod.Status.PodIP+":8080/"); err != nil || answer != pod.Name {
				t.Errorf("the pod %s answers another pod with %q, %v", pod.Name, answer, err)
			}
		}
	})
	t.Run("scale and roll out", func(t *testing.T) {
		c.Kubectl("scale", "deployment/web", "--replicas=2")
		c.Await("two pods", time.Minute, func() bool { return len(c.pods()) == 2 })
		c.Kubectl("rollout", "restart", "deployment/web")
		c.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	})
}
