package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/svcproxy"
)

// publishServer lets the apiserver be reached outside of the node's own namespaces, if
// it is in such ones.
func (n *Node) publishServer(context.Context) error {
	if n.outside == nil {
		return nil
	}
	n.published = svcproxy.NewTable(nil, svcproxy.Options{Log: n.log, Listen: n.outside.Listen})
	var failures error
	for _, f := range n.publish(nil) {
		failures = errors.Join(failures, f.Err)
	}
	return failures
}

// publish brings what is outside to what the cluster has now: the apiserver, node ports
// and hostPorts. What is sent by UDP stays inside.
func (n *Node) publish(ports []svcproxy.Port) []svcproxy.Failure {
	if n.published == nil {
		return nil
	}
	atNode := slices.DeleteFunc(slices.Clone(ports), func(p svcproxy.Port) bool { return len(p.Addresses) > 0 || p.Protocol != corev1.ProtocolTCP })
	return n.published.Apply(append(atNode, svcproxy.Port{Name: "kube-apiserver", Protocol: corev1.ProtocolTCP, Port: port,
		Endpoints: []netip.AddrPort{netip.AddrPortFrom(n.cluster.Address(), port)}}))
}

// closePublished ends the listeners outside; connections that are open get a moment.
func (n *Node) closePublished() {
	if n.published == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.published.Close(ctx); err != nil {
		n.log.Info("connections from outside were cut", "error", err)
	}
}
