// Package native runs the cluster on this machine itself, in a network namespace of
// its own: a plain Linux, on which up has next to nothing to fix.
package native
