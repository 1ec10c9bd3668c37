// Package blocker is the fix sequence: what keeps a node from running on this
// machine, and what is done about it, in the order in which it bites.
//
// Each blocker has a probe of its own. Of all findings one [Plan] is made, which
// check and up --dry-run print, up follows, and status shows; the experiment in
// test/ has the same list.
package blocker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"k3s9p/internal/config"
	"k3s9p/internal/journal"
	"k3s9p/internal/nat"
	"k3s9p/internal/probe"
)

// Blocker is one reason for which a node does not run.
type Blocker struct {
	ID    string
	Title string
	// Symptom is what the user sees when it bites.
	Symptom Symptom
	// Source says where the symptom comes from: a file upstream, or an issue.
	Source string
	Remedy Remedy
	// Action says what is different in the programs, or for pods, where nothing is
	// decided about it.
	Action string
	// Check probes the machine. The evidence is what it saw, or why it could not
	// tell.
	Check func(ctx context.Context, h *Host) (answer Answer, evidence string)
	// Default says why the same is decided where the probe could not tell. Where it is
	// empty nothing is.
	Default string
	// Decide puts choices and changes into the plan. It is nil where Action says what
	// there is to say.
	Decide func(ctx context.Context, d *decision)
	// Undo takes back what is recorded of the changes that outlive the node.
	Undo func(j journal.Journal, id string) error
}

// Answer is what a check found out.
type Answer string

const (
	Found   Answer = "found"          // the blocker bites here
	Fine    Answer = "fine"           // it does not
	Fixed   Answer = "fixed already"  // it did, until this node's fix, which will be undone
	Unclear Answer = "could not tell" // the probe could not be made
)

// Remedy is the kind of a fix.
type Remedy string

const (
	Patch   Remedy = "patch"   // the programs are changed: nothing to do at run time
	Setting Remedy = "setting" // the programs are told so
	Machine Remedy = "machine" // the machine is changed, until it is undone
	Warning Remedy = "warning" // there is no fix, and the node runs without
	None    Remedy = "none"    // there is no fix, and no node
)

// Symptom is a text of a log; "…" stands for anything within a line.
type Symptom string

// In finds the symptom in a log and returns the line from there on, or "".
func (s Symptom) In(log string) string {
	var parts []string
	for part := range strings.SplitSeq(string(s), "…") {
		// Structured logs put a backslash, or several, before a quotation mark.
		parts = append(parts, strings.ReplaceAll(regexp.QuoteMeta(part), `"`, `\\*"`))
	}
	return regexp.MustCompile(strings.Join(parts, `.*`) + `[^\n]*`).FindString(log)
}

// Host is the machine that a node is to run on, and the choices for that node.
type Host struct {
	// Data is the directory of the node's data. What fixes did is recorded in it, in
	// fixes/.
	Data string
	// Programs and Plugins are the directories of the node's programs and of its
	// CNI plugins.
	Programs, Plugins string
	// Sockets are the directories in which the node's programs make sockets and named
	// pipes.
	Sockets []string
	// Places are the directories of the machine in which the node makes files and
	// directories.
	Places []string
	// Memory is what the node needs at least, in bytes; 0 is not known.
	Memory int64
	// Settings are the choices for a machine without any blocker.
	Settings config.Settings

	// backend is what takes rules with MASQUERADE, if that was found.
	backend nat.Backend
	// kubeProxy is the mode in which kube-proxy could work, if one was found.
	kubeProxy string
}

func (h *Host) journal() journal.Journal { return journal.Journal{Dir: filepath.Join(h.Data, "fixes")} }

// Finding is what the check of a blocker gave.
type Finding struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Answer   Answer `json:"answer"`
	Evidence string `json:"evidence"`
	Remedy   Remedy `json:"remedy"`
	// Action is what the plan does about it.
	Action string `json:"action,omitempty"`
}

// All returns the blockers in the order in which they bite.
func All() []Blocker {
	return []Blocker{
		littleMemory, foreignPlaces, sharedMemory, sockets, podNetwork,
		cgroupMounts, cgroupV1, kmsg, mountPropagation, diskThresholds, cniPlugins, overlayfs,
		cgroupFiles, rootFilesystem, tunables,
		seccomp, tmpfsOptions, oomScore, terminals, fewIDs, unprivilegedPorts, linkKind, bridgePort, preferredSource, masquerade, services, bridged, memoryLimits,
	}
}

// Find returns a blocker by its id.
func Find(id string) (Blocker, error) {
	all := All()
	i := slices.IndexFunc(all, func(b Blocker) bool { return b.ID == id })
	if i < 0 {
		return Blocker{}, fmt.Errorf("there is no blocker %q", id)
	}
	return all[i], nil
}

// check probes for all blockers, several at a time.
func check(ctx context.Context, h *Host) []Finding {
	all := All()
	findings := make([]Finding, len(all))
	var group errgroup.Group
	group.SetLimit(4)
	for i, b := range all {
		group.Go(func() error {
			findings[i] = b.check(ctx, h)
			return nil
		})
	}
	_ = group.Wait()
	return findings
}

// patience is how long the check of a blocker may take: a filesystem may never answer.
const patience = 30 * time.Second

// try calls Check, and answers for it if it gives no answer or panics.
func (b Blocker) try(ctx context.Context, h *Host) (Answer, string) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	type result struct {
		answer   Answer
		evidence string
	}
	results := make(chan result, 1)
	go func() {
		defer func() {
			if cause := recover(); cause != nil {
				results <- result{Unclear, fmt.Sprintf("the probe ended with a panic: %v", cause)}
			}
		}()
		answer, evidence := b.Check(ctx, h)
		results <- result{answer, evidence}
	}()
	select {
	case r := <-results:
		return r.answer, r.evidence
	case <-ctx.Done():
		return Unclear, "the probe gave no answer: " + context.Cause(ctx).Error()
	}
}

func (b Blocker) check(ctx context.Context, h *Host) Finding {
	answer, evidence := b.try(ctx, h)
	if answer == Fine && b.Undo != nil && h.journal().Has(b.ID) {
		answer = Fixed
	}
	return Finding{ID: b.ID, Title: b.Title, Answer: answer, Evidence: evidence, Remedy: b.Remedy}
}

// seen turns the error of a probe into an answer.
func seen(err error, evidence string) (Answer, string) {
	switch {
	case err == nil:
		return Fine, evidence
	case errors.Is(err, probe.ErrUnclear), probe.Unprivileged(err):
		return unclear(err)
	}
	return Found, oneLine(err)
}

func unclear(err error) (Answer, string) { return Unclear, oneLine(err) }

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
