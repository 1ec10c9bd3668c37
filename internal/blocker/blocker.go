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
	"regexp"
	"slices"
	"strings"

	"k3s9p/internal/config"
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
	// Check probes the machine. The evidence is what it saw.
	Check func(h *Host) (found bool, evidence string, err error)
	// Fix changes the machine, or the choices for the node (h.Settings). It may be
	// called again. It is nil where the programs themselves are changed.
	Fix func(h *Host) error
	// Undo takes back exactly what Fix recorded that it did to the machine.
	Undo func(h *Host) error
}

// Remedy is the kind of a fix.
type Remedy string

const (
	Patch   Remedy = "patch"   // the programs are changed: nothing to do at run time
	Setting Remedy = "setting" // the programs are told so
	Machine Remedy = "machine" // the machine is changed, until it is undone
	None    Remedy = "none"    // there is no fix
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
	// Data is the folder of the node's data. What fixes did is recorded in it, in
	// fixes/.
	Data string
	// Programs and Plugins are the folders of the node's programs and of its CNI
	// plugins.
	Programs, Plugins string
	Settings          *config.Settings
}

// Finding is what the check of a blocker gave.
type Finding struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Found    bool   `json:"found"`
	Evidence string `json:"evidence"`
	Remedy   Remedy `json:"remedy"`
	Action   string `json:"action"`
}

// All returns the blockers in the order in which they bite.
func All() []Blocker {
	return []Blocker{
		cgroupV1, kmsg, mountPropagation, diskThresholds, cniPlugins, overlayfs,
		cgroupFiles, rootFilesystem, tunables,
		seccomp, unprivilegedPorts, bridgePort, preferredSource, masquerade, services, vxlan,
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

// Check probes all blockers. An error is one of the probes themselves; the
// findings of the others are returned with it.
func Check(ctx context.Context, h *Host) ([]Finding, error) {
	var findings []Finding
	var failures error
	for _, b := range All() {
		if err := ctx.Err(); err != nil {
			return findings, errors.Join(failures, err)
		}
		finding, err := b.check(h)
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		findings = append(findings, finding)
	}
	return findings, failures
}

func (b Blocker) check(h *Host) (Finding, error) {
	found, evidence, err := b.Check(h)
	if err != nil {
		return Finding{}, fmt.Errorf("check %s: %w", b.ID, err)
	}
	return Finding{ID: b.ID, Title: b.Title, Found: found, Evidence: evidence, Remedy: b.Remedy, Action: b.Action}, nil
}

// Fix checks all blockers and fixes those that are found, except the named ones.
// It changes h.Settings.
func Fix(ctx context.Context, h *Host, except ...string) ([]Finding, error) {
	for _, id := range except {
		if _, err := Find(id); err != nil {
			return nil, err
		}
	}
	var findings []Finding
	for _, b := range All() {
		if err := ctx.Err(); err != nil {
			return findings, err
		}
		finding, err := b.check(h)
		if err != nil {
			return findings, err
		}
		findings = append(findings, finding)
		if !finding.Found || b.Fix == nil || slices.Contains(except, b.ID) {
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

// seen turns the error of a probe into a finding.
func seen(err error, fine string) (bool, string, error) {
	if err != nil {
		return true, strings.Join(strings.Fields(err.Error()), " "), nil
	}
	return false, fine, nil
}
