package node

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// warn tells the user of an object what is wrong with it: kubectl describe shows it.
func (n *Node) warn(ctx context.Context, about corev1.ObjectReference, reason, message string) {
	now := time.Now()
	event := &corev1.Event{
		InvolvedObject: about, Reason: reason, Message: message, Type: corev1.EventTypeWarning,
		Source: corev1.EventSource{Component: "k3s9p"}, Count: 1,
	}
	event.Name, event.Namespace = fmt.Sprintf("%s.%x", about.Name, now.UnixNano()), about.Namespace
	event.FirstTimestamp.Time, event.LastTimestamp.Time = now, now
	if err := n.client.ensure(ctx, "/api/v1/namespaces/"+about.Namespace+"/events", event); err != nil {
		n.log.Warn("an event could not be written", "about", about.Kind+" "+about.Namespace+"/"+about.Name, "reason", message, "error", err)
	}
}
