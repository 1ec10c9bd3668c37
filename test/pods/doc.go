// Package pods runs static pods on a node in a gVisor sandbox: what a user does
// with a pod, and what is left of it afterwards.
package pods
