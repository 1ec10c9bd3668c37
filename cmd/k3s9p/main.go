// Command k3s9p is the launcher: it carries a distribution of Kubernetes that
// runs on filesystems where nobody thought a node could.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "k3s9p: %v\n", err)
		os.Exit(1)
	}
}
