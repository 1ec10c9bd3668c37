package cluster

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/test/gvisor"
)

// externalIP is an address that no machine of the test has.
const externalIP = "203.0.113.7"

const someServices = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  externalIPs: [` + externalIP + `]
  selector: {app: web}
  ports: [{port: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: affine}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: at-host-port}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: "k3s9p.local/web:1", imagePullPolicy: Never, ports: [{containerPort: 8080, hostPort: 8088}]}]
`

// services asks for Services by name and by address, from pods, from the node and
// from outside.
func (c *Cluster) services(t *testing.T, pods []corev1.Pod) {
	c.Apply("services", someServices)
	var service corev1.Service
	c.Get(&service, "service", "web")
	names := make(map[string]bool)
	for _, pod := range pods {
		names[pod.Name] = true
	}
	atNode := "127.0.0.1:30080"
	if gvisor.Native() {
		atNode = gvisor.Address + ":30080" // kube-proxy leaves loopback alone
	}
	for _, way := range []struct{ from, address string }{
		{"node network", service.Spec.ClusterIP + ":8080"},
		{"pod", service.Spec.ClusterIP + ":8080"},
		{"pod", "web:8080"},
		{"pod", "web.default.svc.cluster.local:8080"},
		{"node", atNode},
		{"outside", gvisor.Address + ":30080"},
		{"pod", gvisor.Address + ":30080"},
		{"node network", externalIP + ":8080"},
		{"pod", externalIP + ":8080"},
	} {
		if c.apart && way.from == "node network" {
			continue // what is in the sandbox is not on it
		}
		t.Run("from "+way.from+" to "+way.address, func(t *testing.T) {
			c.awaitAnswer(way.from, pods[0], way.address, names)
			answers := make(map[string]int)
			times := 2 * len(pods)
			if gvisor.Native() {
				times = 100 // the kernel chooses at random
			}
			for i := 0; i < times && (i < 2*len(pods) || len(answers) < len(pods)); i++ {
				answers[c.askFrom(way.from, pods[0], way.address)]++
			}
			for answer := range answers {
				if !names[answer] {
					t.Errorf("it answers %q", answer)
				}
			}
			if len(answers) != len(pods) {
				t.Errorf("of %d endpoints %d answered: %v", len(pods), len(answers), answers)
			}
		})
	}
	t.Run("sessionAffinity ClientIP", func(t *testing.T) {
		c.awaitAnswer("pod", pods[0], "affine:8080", names)
		chosen := make(map[string]string)
		for i := range 4 * len(pods) {
			pod := pods[i/2%len(pods)] // each twice: in turn each would get its own without affinity as well
			answer := c.askFrom("pod", pod, "affine:8080")
			if before, ok := chosen[pod.Name]; !names[answer] || ok && answer != before {
				t.Errorf("the pod %s got %q, and before %q", pod.Name, answer, before)
			}
			chosen[pod.Name] = answer
		}
	})
	t.Run("kubernetes.default from a pod", func(t *testing.T) {
		answer, err := c.AskPod(pods[0], "/get?url="+url.QueryEscape("https://kubernetes.default/version"))
		if err == nil || !strings.Contains(answer, "certificate") { // the apiserver's, which the pod does not know
			t.Errorf("the apiserver answers %q, %v", answer, err)
		}
	})
	t.Run("a headless Service has the addresses of pods", func(t *testing.T) {
		var answer string
		c.Await("as many addresses as there are pods", time.Minute, func() bool {
			answer, _ = c.AskPod(pods[0], "/lookup?name=headless")
			return len(strings.Fields(answer)) == len(pods)
		})
		if !strings.Contains(answer, pods[1].Status.PodIP) {
			t.Errorf("it has %q", answer)
		}
	})
	t.Run("a hostPort", func(t *testing.T) {
		c.Kubectl("wait", "--for=condition=ready", "pod/at-host-port", "--timeout=60s")
		c.Await("the pod at the node's port", 30*time.Second, func() bool { return c.askFrom("outside", pods[0], gvisor.Address+":8088") == "at-host-port" })
		c.Kubectl("delete", "pod", "at-host-port", "--now")
	})
	t.Run("a Service that is deleted is gone", func(t *testing.T) {
		c.Kubectl("delete", "service", "web", "affine", "headless")
		c.Await("the end of the Service", time.Minute, func() bool {
			return strings.Contains(c.askFrom("node", pods[0], atNode), "refused") && !strings.Contains(c.Must("ip", "address"), service.Spec.ClusterIP) && !strings.Contains(c.Must("ip", "address"), externalIP)
		})
	})
}

// awaitAnswer waits until one of the pods answers: those who serve a Service, and the name
// server, follow the cluster and do not know at once that there is another one. That a
// name is unknown CoreDNS remembers for half a minute.
func (c *Cluster) awaitAnswer(from string, pod corev1.Pod, address string, names map[string]bool) {
	c.t.Helper()
	var answer string
	for deadline := time.Now().Add(time.Minute); !names[answer]; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("no pod answers at %s within a minute, but: %s", address, answer)
		}
		answer = c.askFrom(from, pod, address)
	}
}

// askFrom returns what a web server answers, or the error.
func (c *Cluster) askFrom(from string, pod corev1.Pod, address string) string {
	var answer string
	var err error
	switch from {
	case "node", "node network":
		answer, err = c.Try(time.Minute, "inside", "http", "GET", "http://"+address+"/")
	case "pod":
		answer, err = c.AskPod(pod, "/get?url="+url.QueryEscape("http://"+address+"/"))
	case "outside":
		err = c.Outside(func() (err error) {
			answer, err = gvisor.Get("http://" + address + "/")
			return err
		})
	}
	if err != nil {
		return fmt.Sprint(err, answer)
	}
	return answer
}
