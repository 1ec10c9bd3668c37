// Package contract is what go tool mage test:sandbox and the scenarios in test/ agree
// on: where things are, and what the files are called that a sandbox may get.
package contract

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// variable of the environment that a Run is handed over in.
const variable = "K3S9P_SANDBOX"

// Run is what a scenario is given.
type Run struct {
	Programs  string `json:"programs"`  // the directory of the files below
	GVisor    string `json:"gvisor"`    // today, or YYYYMM; or Native
	Runsc     string `json:"runsc"`     // that gVisor among the files
	Sandboxes string `json:"sandboxes"` // the directory that sandboxes are made in
	Reports   string `json:"reports"`   // the directory that reports go to
	Bench     Bench  `json:"bench,omitzero"`
	Kills     int    `json:"kills"` // how many commands the scenario undo kills
	// Distribution is the one in dist/; "" is kubernetes.
	Distribution string `json:"distribution,omitempty"`
}

// Native stands for a gVisor where there is none: what is a sandbox otherwise is a machine
// of its own on this kernel.
const Native = "native"

// Program is the path of a file that a sandbox may get.
func (r Run) Program(name string) string { return filepath.Join(r.Programs, name) }

// Variable is the run as an entry of a process's environment.
func (r Run) Variable() (string, error) {
	data, err := json.Marshal(r)
	return variable + "=" + string(data), err
}

// Given returns the run of this process, if test:sandbox has started it.
func Given() (run Run, ok bool) {
	text := os.Getenv(variable)
	if text == "" {
		return run, false
	}
	if err := json.Unmarshal([]byte(text), &run); err != nil {
		panic("read " + variable + ": " + err.Error())
	}
	return run, true
}

// Files that a sandbox may get, besides the programs of the distribution under their
// own names.
const (
	Root       = "root.tar"  // the small Debian
	LinuxRoot  = "linux.tar" // a small Debian with a kernel
	Inside     = "inside"    // test/gvisor/inside
	Guest      = "guest"     // test/qemu/guest
	Web        = "web"       // test/web
	WebImage   = "web.tar"   // an image of it
	PauseImage = "pause.tar" // the distribution's
	Launcher   = "k3s9p"

	Kube         = "kube"
	KubeStock    = "kube-stock"    // without any patch
	KubeCgroups  = "kube-cgroups"  // with the patches of opencontainers/cgroups only
	KubeCAdvisor = "kube-cadvisor" // with those of cAdvisor as well

	K3s = "k3s" // where dist/ has it

	Runc               = "runc"
	RuncWithoutSeccomp = "runc-noseccomp"
)

// Stock is the name of a program of containerd or of the CNI plugins without any
// patch.
func Stock(program string) string { return "stock-" + program }
