// Package updown brings a cluster up and down, again and again, in a gVisor
// sandbox, and compares the machine afterwards with what it was: also after Ctrl-C
// in the middle, and after SIGKILL.
package updown
