package node

import (
	"context"
	"fmt"
	"time"
)

// metricsUser is who metrics-server is to the apiserver and the kubelet.
const metricsUser = "k3s9p:metrics-server"

// metricsPort is where it listens on loopback: beside those of kube-controller-manager
// and kube-scheduler.
const metricsPort = 10261

// metricsServerArgs are those of metrics-server as a part of the control plane.
func (n *Node) metricsServerArgs() []string {
	pki, conf := n.paths.pkiFile, n.paths.conf("metrics-server")
	return []string{
		"--kubeconfig=" + conf, "--authentication-kubeconfig=" + conf, "--authorization-kubeconfig=" + conf,
		"--authentication-skip-lookup=true",
		"--client-ca-file=" + pki("ca.crt"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", metricsPort),
		"--tls-cert-file=" + pki("apiserver.crt"),
		"--tls-private-key-file=" + pki("apiserver.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-use-node-status-port",
		"--metric-resolution=15s", // as upstream's manifests; the kubelet measures every 10 s
	}
}

// metricsKubeconfig makes the kubeconfig of metrics-server, also for a cluster that is
// older than it.
func (n *Node) metricsKubeconfig() error {
	if !n.options.has(metricsAddOn) {
		return nil
	}
	return n.userKubeconfig("metrics-server", metricsUser)
}

// The paths of what metrics-server serves.
const (
	metricsAPI      = "/apis/metrics.k8s.io/v1beta1"
	nodeMetricsPath = metricsAPI + "/nodes"
)

// metricsAnswer asks whether the API is there; numbers come later. Until it is there,
// kubectl complains about it, and no namespace can be deleted.
func (n *Node) metricsAnswer(ctx context.Context) error { return n.client.get(ctx, metricsAPI, nil) }

// What is said of kubectl top.
const (
	topSilent  = "metrics-server; kubectl top has no numbers yet"
	topAnswers = "metrics-server; kubectl top answers"
)

// followMetrics notes whether there are numbers, until ctx ends.
func (n *Node) followMetrics(ctx context.Context) {
	for {
		how, again := n.lookAtMetrics(ctx), 30*time.Second
		if how != topAnswers {
			again = time.Second
		}
		if ctx.Err() == nil {
			n.noteAddOn(AddOn{metricsAddOn, how})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

func (n *Node) lookAtMetrics(ctx context.Context) string {
	var list struct {
		Items []struct{} `json:"items"`
	}
	switch err := n.client.get(ctx, nodeMetricsPath, &list); {
	case err != nil:
		return "metrics-server does not answer: " + err.Error()
	case len(list.Items) == 0:
		return topSilent
	}
	return topAnswers
}
