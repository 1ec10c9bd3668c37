// Package hungmount mounts a filesystem that never answers statfs on a node in a
// gVisor sandbox: the node stays healthy and reports the others.
package hungmount
