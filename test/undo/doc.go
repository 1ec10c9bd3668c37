// Package undo takes back, in a gVisor sandbox, what a node changed on the machine: also
// twice, also what was recorded and never done, and after SIGKILL at random moments.
package undo
