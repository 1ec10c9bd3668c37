// Package report is what the scenario experiment writes: the steps of a published
// experiment as they went in each gVisor, as JSON, as a table, and as a picture of
// which error hides behind which.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What a step is.
const (
	Iteration  = "iteration"  // of the published experiment
	Workaround = "workaround" // that the experiment tried in vain
	Cause      = "cause"      // of its last error
	Extra      = "blocker"    // that the experiment did not meet
)

var kinds = []string{Iteration, Workaround, Cause, Extra}

// How a step can end.
const (
	Reproduced      = "reproduced"
	NotReproduced   = "not-reproduced"
	FailsAsExpected = "fails-as-expected"
	Helps           = "helps"
	Passed          = "passed"
	Failed          = "FAILED"
)

// Step is an entry of the report.
type Step struct {
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Title    string `json:"title"` // what bites, or was tried
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	Fix      string `json:"fix"`
	Result   string `json:"result"`
	Evidence string `json:"evidence"`
}

// Column is the experiment in one gVisor.
type Column struct {
	GVisor string `json:"gvisor"` // today, or YYYYMM
	Steps  []Step `json:"steps"`
}

// evidenceLimit is how much of the evidence is kept.
const evidenceLimit = 600 // bytes

// plainQuotes takes back what structured logs do to quotation marks, once or twice.
var plainQuotes = strings.NewReplacer(`\\\"`, `"`, `\"`, `"`)

func name(dir, gvisor string) string { return filepath.Join(dir, "experiment-"+gvisor+".json") }

// Write writes a column to a directory.
func (c Column) Write(dir string) error {
	slices.SortStableFunc(c.Steps, func(a, b Step) int { return rank(a) - rank(b) })
	for i := range c.Steps {
		s := &c.Steps[i]
		s.Seen = plainQuotes.Replace(s.Seen)
		s.Evidence = s.Evidence[:min(len(s.Evidence), evidenceLimit)]
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return writeJSON(name(dir, c.GVisor), c)
}

// rank is the place of a step's kind; the iterations are in the order of their
// numbers, and what else there is in that in which it ran.
func rank(s Step) int {
	rank := 10 * slices.Index(kinds, s.Kind)
	if s.Kind == Iteration {
		rank += int(strings.TrimPrefix(s.ID, "iteration-")[0] - '0')
	}
	return rank
}

// Clear removes the column that an earlier run has written for a gVisor.
func Clear(dir, gvisor string) error {
	if err := os.Remove(name(dir, gvisor)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Read returns the columns in a directory, in the order of some gVisors.
func Read(dir string, gvisors []string) ([]Column, error) {
	var columns []Column
	for _, gvisor := range gvisors {
		data, err := os.ReadFile(name(dir, gvisor))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var c Column
		if err == nil {
			err = json.Unmarshal(data, &c)
		}
		if err != nil {
			return nil, fmt.Errorf("read the report of the experiment: %w", err)
		}
		columns = append(columns, c)
	}
	return columns, nil
}

// Conclude writes experiment.json, experiment.md and experiment.svg of some columns.
func Conclude(dir string, columns []Column) error {
	return errors.Join(
		writeJSON(filepath.Join(dir, "experiment.json"), columns),
		os.WriteFile(filepath.Join(dir, "experiment.md"), []byte(document(columns)), 0o644),
		os.WriteFile(filepath.Join(dir, "experiment.svg"), []byte(picture(columns[0])), 0o644),
	)
}

func writeJSON(name string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o644)
}
