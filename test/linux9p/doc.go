// Package linux9p brings a node up on Linux with a 9p root, in virtual machines: what
// QEMU's shares and Linux' client refuse is not what gVisor refuses. And it brings one up
// there as a user that is not root.
package linux9p
