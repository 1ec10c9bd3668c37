// Package overlayroot runs a node in gVisor's default: the root is an overlay, kept
// in a file beside the files that it covers.
package overlayroot
