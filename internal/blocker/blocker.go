// Package blocker is the fix sequence: what keeps a node from running on this
// machine, and what is done about it, in the order in which it bites.
//
// Each blocker is a file with its own probe. The same list is behind the command
// check, behind what brings a node up, and behind the experiment in test/.
package blocker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"k3s9p/internal/config"
	"k3s9p/internal/journal"
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
	// Action says what the remedy does.
	Action string
	// Check probes the machine. The evidence is what it saw, or why it could not
	// tell.
	Check func(ctx context.Context, h *Host) (answer Answer, evidence string)
	// FixUnclear says that the fix is made as well where the probe could not tell,
	// because it is right everywhere, if not the best.
	FixUnclear bool
	// Fix changes the machine, or the choices for the node (h.Settings). It may be
	// called again. It is nil where the programs themselves are changed.
	Fix func(h *Host) error
	// Undo takes back exactly what Fix recorded that it did to the machine.
	Undo func(h *Host) error
}

// Answer is what a check found out.
type Answer string

const (
	Found   Answer = "found"          // the blocker bites here
	Fine    Answer = "fine"           // it does not
	Fixed   Answer = "fixed"          // it did, until this node's fix, which can be undone
	Unclear Answer = "could not tell" // the probe could not be made
)

// Remedy is the kind of a fix.
type Remedy string

const (
	Patch   Remedy = "patch"   // the programs are changed: nothing to do at run time
	Setting Remedy = "setting" // the programs are told so
	Machine Remedy = "machine" // the machine is changed, until it is undone
	Node    Remedy = "node"    // the node does without, in another way
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
	// OwnMounts says that this process is in a mount namespace of the node's own:
	// what is mounted there is not recorded, because it ends with the node.
	OwnMounts bool
	Settings  *config.Settings
}

func (h *Host) journal() journal.Journal { return journal.Journal{Dir: filepath.Join(h.Data, "fixes")} }

// Finding is what the check of a blocker gave.
type Finding struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Answer   Answer `json:"answer"`
	Evidence string `json:"evidence"`
	Remedy   Remedy `json:"remedy"`
	Action   string `json:"action"`
}

// All returns the blockers in the order in which they bite.
func All() []Blocker {
	return []Blocker{
		cgroupMounts, cgroupV1, kmsg, mountPropagation, diskThresholds, cniPlugins, overlayfs,
		cgroupFiles, rootFilesystem, tunables,
		seccomp, tmpfsOptions, oomScore, unprivilegedPorts, linkKind, bridgePort, preferredSource, masquerade, services, vxlan, memoryLimits,
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

// Check probes all blockers, several at a time, and changes nothing.
func Check(ctx context.Context, h *Host) ([]Finding, error) {
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
	return findings, ctx.Err()
}

func (b Blocker) check(ctx context.Context, h *Host) Finding {
	answer, evidence := b.Check(ctx, h)
	if answer == Fine && b.Undo != nil {
		if h.journal().Has(b.ID) {
			answer = Fixed
		}
	}
	return Finding{ID: b.ID, Title: b.Title, Answer: answer, Evidence: evidence, Remedy: b.Remedy, Action: b.Action}
}

// Fix checks all blockers and fixes those that are found, except the named ones.
// It changes h.Settings.
func Fix(ctx context.Context, h *Host, except ...string) ([]Finding, error) {
	for _, id := range except {
		if _, err := Find(id); err != nil {
			return nil, err
		}
	}
	findings, err := Check(ctx, h)
	if err != nil {
		return findings, err
	}
	for i, b := range All() {
		finding := findings[i]
		wanted := finding.Answer == Found || finding.Answer == Unclear && b.FixUnclear
		if !wanted || b.Fix == nil || slices.Contains(except, b.ID) {
			continue
		}
		if err := b.Fix(h); err != nil {
			return findings, fmt.Errorf("fix %s (%s): %w", b.ID, finding.Evidence, err)
		}
	}
	return findings, nil
}

// Undo takes back what fixes did to the machine, the last one first, as recorded
// in the data folder. Where nothing is recorded it does nothing.
func Undo(h *Host) error {
	var failures error
	for _, b := range slices.Backward(All()) {
		if b.Undo == nil {
			continue
		}
		if err := b.Undo(h); err != nil {
			failures = errors.Join(failures, fmt.Errorf("undo %s: %w", b.ID, err))
		}
	}
	return failures
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
