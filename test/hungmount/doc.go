// Package hungmount lets a filesystem behind two mounts of a node in a gVisor sandbox
// fall silent: the kubelet loses one thread per mount, and not one per sample; the node
// stays healthy and reports the others.
package hungmount
