package cluster

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"k3s9p/internal/blocker"
	"k3s9p/internal/node"
)

// Data is the directory of the data of root's node.
const Data = node.DefaultData

// Snapshot is what a node could leave in the sandbox, except for its data.
func (c *Cluster) Snapshot() string { return c.Must("inside", "snapshot", c.data) }

// Unchanged compares the sandbox with an earlier snapshot. What the kernel takes away a
// moment later, such as the devices of a network namespace, has that moment: on a busy
// machine a snapshot alone takes seconds.
func (c *Cluster) Unchanged(before string) {
	c.t.Helper()
	var diff string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if diff = cmp.Diff(strings.Split(before, "\n"), strings.Split(c.Snapshot(), "\n")); diff == "" {
			return
		}
	}
	c.t.Errorf("the machine is not as it was:\n%s", diff)
}

// Down has to succeed.
func (c *Cluster) Down() {
	c.t.Helper()
	if output, err := c.K3s9p("down"); err != nil {
		c.t.Fatalf("k3s9p down: %v\n%s", err, output)
	}
}

// KillSupervisor ends the supervisor with SIGKILL, and waits for the end of the process: a
// moment after the signal the node still counts as running.
func (c *Cluster) KillSupervisor() {
	c.t.Helper()
	c.Must("pkill", "-KILL", "-f", "^k3s9p-supervisor")
	c.Await("the end of the supervisor", time.Minute, func() bool { return c.Status().Phase == node.Killed })
}

// Status is what k3s9p status says.
func (c *Cluster) Status() node.State {
	c.t.Helper()
	var s node.State
	c.Ask(&s, "status")
	return s
}

// Finds expects that check finds these blockers, and no other.
func (c *Cluster) Finds(ids []string) {
	c.t.Helper()
	var plan blocker.Plan
	c.Ask(&plan, "check")
	for _, f := range plan.Findings {
		if (f.Answer == blocker.Found) != slices.Contains(ids, f.ID) {
			c.t.Errorf("check says of %s: %s: %s", f.ID, f.Answer, f.Evidence)
		}
	}
}

// Ask runs a command that answers in JSON.
func (c *Cluster) Ask(answer any, command string) {
	c.t.Helper()
	output, err := c.K3s9p(command, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(output), answer)
	}
	if err != nil {
		c.t.Fatalf("k3s9p %s: %v\n%s", command, err, output)
	}
}
