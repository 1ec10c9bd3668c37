// Command k3s9p brings up a cluster on filesystems where nobody thought a node could
// run: it carries a distribution of Kubernetes in its own file.
//
// The rules of its output: results and the next command to type go to standard
// output, progress and errors to standard error. An error is one line that begins
// with "k3s9p:", and where something can be done about it a line "hint:". The exit
// status is 0 or 1, and that of the program for kubectl and ctr.
package main

import (
	"fmt"
	"os"

	"k3s9p/internal/probe"
)

func main() {
	runAs(os.Args[0], os.Args[1:])
	probe.Init() // this process may have been started for a probe, or as supervisor
	if err := root().Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "k3s9p: %v\n", err)
		os.Exit(1)
	}
}
