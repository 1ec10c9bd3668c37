// Package fixed is what the program in the sandbox says when it has fixed the
// machine.
package fixed

import (
	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
)

// Machine is one that the node's programs can start on.
type Machine struct {
	Plan  blocker.Plan `json:"plan"` // that was followed
	Files config.Files `json:"files"`
}
