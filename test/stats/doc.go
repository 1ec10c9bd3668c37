// Package stats compares the figures of a kubelet in a gVisor sandbox with what the
// sandbox itself says, and with a load that the test makes.
package stats
