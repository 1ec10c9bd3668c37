// Package bench measures what a cluster costs, in a gVisor sandbox and with the same
// file on this machine itself, in turn. It judges nothing: go tool mage bench does.
package bench
