package node

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k3s9p/internal/userns"
)

// followIDs tells the owners of pods that need a user or a group which is not mapped in
// the node's user namespace, until ctx ends: what the programs say names neither.
func (n *Node) followIDs(ctx context.Context) {
	users, groups, err := userns.Mapped()
	if err != nil || users >= userns.IDs && groups >= userns.IDs {
		return // it is said at the start, or there is nothing to say
	}
	conn, err := grpc.NewClient("unix://"+n.plan.Settings.Containerd.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.log.Warn("pods whose users are not mapped get no event", "error", err)
		return
	}
	defer conn.Close()
	images := cri.NewImageServiceClient(conn)
	reported := make(map[types.UID]bool)
	n.follow(ctx, []string{n.podsPath()}, func() error {
		var pods corev1.PodList
		if err := n.client.get(ctx, n.podsPath(), &pods); err != nil {
			return err
		}
		for _, pod := range pods.Items {
			if pod.Status.Phase != corev1.PodPending || reported[pod.UID] {
				continue
			}
			for _, need := range append(asked(&pod), imageUsers(ctx, images, &pod)...) {
				if mapped, err := need.mapped(); err != nil || mapped {
					continue
				}
				reported[pod.UID] = true
				n.warn(ctx, corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, "IDNotMapped",
					fmt.Sprintf("%v, which is not mapped: this node has %d users and %d groups, those of root first", need, users, groups))
			}
		}
		return nil
	})
}

// need is a user or a group that something in a pod has to be.
type need struct {
	what string
	kind string // user or group
	id   int64
}

func (n need) String() string { return fmt.Sprintf("%s is to be %s %d", n.what, n.kind, n.id) }

func (n need) mapped() (bool, error) {
	if n.kind == "user" {
		return userns.HasUser(int(n.id))
	}
	return userns.HasGroup(int(n.id))
}

// asked are those of a pod's security contexts.
func asked(pod *corev1.Pod) (needs []need) {
	add := func(what, kind string, id *int64) {
		if id != nil {
			needs = append(needs, need{what, kind, *id})
		}
	}
	if c := pod.Spec.SecurityContext; c != nil {
		add("the pod", "user", c.RunAsUser)
		add("the pod", "group", c.RunAsGroup)
		add("what is in its volumes", "group", c.FSGroup)
	}
	for _, container := range containersOf(pod) {
		if c := container.SecurityContext; c != nil {
			add("container "+container.Name, "user", c.RunAsUser)
			add("container "+container.Name, "group", c.RunAsGroup)
		}
	}
	return needs
}

func containersOf(pod *corev1.Pod) []corev1.Container {
	return append(append([]corev1.Container(nil), pod.Spec.InitContainers...), pod.Spec.Containers...)
}

// imageUsers are those that the images say, where the pod says nothing. An image that is
// not there yet is asked about when its pod changes.
func imageUsers(ctx context.Context, images cri.ImageServiceClient, pod *corev1.Pod) (needs []need) {
	if c := pod.Spec.SecurityContext; c != nil && c.RunAsUser != nil {
		return nil
	}
	for _, container := range containersOf(pod) {
		if c := container.SecurityContext; c != nil && c.RunAsUser != nil {
			continue
		}
		status, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: container.Image}})
		if err != nil || status.Image == nil {
			continue
		}
		id, err := strconv.ParseInt(status.Image.Username, 10, 64)
		if status.Image.Uid != nil {
			id, err = status.Image.Uid.Value, nil
		}
		if err == nil {
			needs = append(needs, need{fmt.Sprintf("container %s of the image %s", container.Name, container.Image), "user", id})
		}
	}
	return needs
}
