// Package cluster does what a user does: it copies k3s9p alone into a gVisor
// sandbox, types k3s9p up, and uses the cluster.
package cluster
