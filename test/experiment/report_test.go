package experiment

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k3s9p/test/gvisor"
)

// What a step of the report is, and how it can end.
const (
	iteration  = "iteration"  // of the published experiment
	workaround = "workaround" // that the experiment tried in vain
	cause      = "cause"      // of its last error
	extra      = "blocker"    // that the experiment did not meet

	reproduced       = "reproduced"
	notReproduced    = "not-reproduced"
	failsAsExpected  = "fails-as-expected"
	passed           = "passed"
	failed           = "FAILED"
	evidenceMaxBytes = 600
)

// step is an entry of the report.
type step struct {
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Expected string `json:"expected"`
	Seen     string `json:"seen"`
	Fix      string `json:"fix"`
	Result   string `json:"result"`
	Evidence string `json:"evidence"`
}

var report []*step

// run makes a step a subtest. It has failed until its function says otherwise.
func (s step) run(t *testing.T, f func(t *testing.T, s *step)) {
	s.Result = failed
	report = append(report, &s)
	t.Run(s.ID, func(t *testing.T) {
		f(t, &s)
		if s.Result == failed {
			t.Error("the step has no result")
		}
		s.Evidence = s.Evidence[:min(len(s.Evidence), evidenceMaxBytes)]
		t.Attr("result", s.Result)
	})
}

// writeReport writes experiment.json and experiment.md.
func writeReport() error {
	dir := gvisor.Reports()
	if dir == "" || len(report) == 0 {
		return nil
	}
	slices.SortStableFunc(report, func(a, b *step) int {
		kinds := []string{iteration, workaround, cause, extra}
		order := cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind))
		if order == 0 && a.Kind == iteration {
			order = cmp.Compare(a.ID, b.ID) // iteration-1 to iteration-7
		}
		return order
	})
	for _, s := range report {
		s.Seen = nextField.ReplaceAllString(strings.TrimSuffix(s.Seen, `"`), "")
	}
	data, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	var table strings.Builder
	table.WriteString("| step | expected | seen | fix | result |\n| --- | --- | --- | --- | --- |\n")
	for _, s := range report {
		fmt.Fprintf(&table, "| %s | %s | %s | %s | %s |\n", s.ID, cell(s.Expected), cell(s.Seen), strings.ReplaceAll(s.Fix, "|", "\\|"), s.Result)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "experiment.json"), append(data, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "experiment.md"), []byte(table.String()), 0o644))
}

// nextField begins the next field of a structured log.
var nextField = regexp.MustCompile(`" \w+=.*$`)

// cell shows the words of a program.
func cell(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.NewReplacer("|", "\\|", "`", "'", "\n", " ").Replace(text[:min(len(text), 200)]) + "`"
}
