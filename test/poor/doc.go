// Package poor brings the cluster up where something is missing: a capability, a
// writable /etc, space on the disk, memory. It works, or says what is missing and has changed
// nothing.
package poor
