package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/config"
)

func (n *Node) kubelet(context.Context) error {
	args := append(KubeletArgs(n.plan.Settings, n.files, n.cluster.NodeName),
		"--kubeconfig="+n.paths.conf("kubelet"),
		"--cert-dir="+n.paths.pkiFile("kubelet"),
		"--tls-cert-file="+n.paths.etc(kubeletServing+".crt"),
		"--tls-private-key-file="+n.paths.etc(kubeletServing+".key"),
		"--node-ip="+n.cluster.Address().String(),
	)
	n.started = time.Now()
	return n.start(kubelet, 10*time.Second, append(args, flagsOf(n.options.KubeletArgs)...)...)
}

// KubeletArgs are the arguments of a kubelet, with or without a control plane.
func KubeletArgs(s config.Settings, files config.Files, nodeName string) []string {
	return []string{
		"--config=" + files.Kubelet,
		"--root-dir=" + s.Kubelet.RootDir,
		"--hostname-override=" + nodeName,
		// Where cAdvisor learns which pod a cgroup is of; no field of the configuration says
		// it (cmd/kubelet/app/options/globalflags_linux.go).
		"--containerd=" + s.Containerd.Socket(),
	}
}

// nodeReady asks for the condition Ready of the node, of this start: the database
// remembers that of the last one.
func (n *Node) nodeReady(ctx context.Context) error {
	var node corev1.Node
	if err := n.client.get(ctx, n.nodePath(), &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		switch {
		case condition.Type != corev1.NodeReady:
		case condition.LastHeartbeatTime.Unix() < n.started.Unix():
			return errors.New("the kubelet has not said anything since it was started")
		case condition.Status == corev1.ConditionTrue:
			return nil
		default:
			return fmt.Errorf("the node is not Ready: %s", condition.Message)
		}
	}
	return errors.New("the kubelet has not said yet whether the node is Ready")
}

// ready waits until a user can run a pod: the node is Ready, pods have a service
// account, names resolve, and the APIs are complete; a node that joins reaches the server
// on the pod network.
func (n *Node) ready(ctx context.Context) error {
	account := func(ctx context.Context) error {
		return n.client.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
	}
	conditions := []func(context.Context) error{n.nodeReady}
	if n.cluster.Joined() {
		conditions = append(conditions, n.serverReached)
	} else {
		conditions = append(conditions, n.controlPlaneReady, account)
		if n.options.has(metricsAddOn) {
			conditions = append(conditions, n.metricsAnswer)
		}
	}
	if n.options.has(dnsAddOn) {
		conditions = append(conditions, n.dnsAnswers)
	}
	for _, condition := range conditions {
		if err := n.supervisor.Await(ctx, condition, append(n.distribution().server, containerd, kubelet, coredns)...); err != nil {
			return err
		}
	}
	return nil
}
