// Package node brings a node up and down: the container runtime, the kubelet, the pod
// network, DNS and, unless it joins the cluster of another node, the control plane, as
// processes of this machine.
//
// The node lives in a mount namespace of its own: what is mounted for it ends with
// it, whatever ended it, and no removal of its data can reach through a mount. The
// process in there, the supervisor, is found again by the lock that it holds. What
// else is changed on the machine is in the journal before it is done.
package node
