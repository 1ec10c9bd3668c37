// Package node brings a cluster of one node up and down: the control plane, the
// container runtime, the kubelet, the pod network and DNS, as processes of this
// machine.
//
// The node lives in a mount namespace of its own: what is mounted for it ends with
// it, whatever ended it, and no removal of its data can reach through a mount. The
// process in there, the supervisor, is found again by the lock that it holds. What
// else is changed on the machine is in the journal before it is done.
package node
