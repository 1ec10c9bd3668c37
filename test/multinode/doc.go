// Package multinode brings up a cluster of two nodes, each in a gVisor sandbox of its own
// on one network, and uses it from both.
package multinode
