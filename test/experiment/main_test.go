package experiment

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"k3s9p/internal/proof/report"
	"k3s9p/test/gvisor"
)

func TestMain(m *testing.M) { gvisor.Main(reporting{m}) }

// reporting writes the report when the tests have run, also if some have failed, unless
// only some were asked for.
type reporting struct{ *testing.M }

func (r reporting) Run() int {
	code := r.M.Run()
	if len(steps) == 0 || flag.Lookup("test.run").Value.String() != "" {
		return code
	}
	column := report.Column{GVisor: gvisor.Name()}
	for _, s := range steps {
		column.Steps = append(column.Steps, s.Step)
	}
	if err := column.Write(gvisor.Reports()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// step is an entry of the report.
type step struct{ report.Step }

var steps []*step

// run makes a step a subtest. It has failed until its function says otherwise.
func run(t *testing.T, of report.Step, f func(t *testing.T, s *step)) {
	t.Helper()
	gvisor.Require(t) // otherwise there is nothing to report
	s := &step{of}
	s.Result = report.Failed
	steps = append(steps, s)
	t.Run(s.ID, func(t *testing.T) {
		f(t, s)
		if s.Result == report.Failed {
			t.Error("the step has no result")
		}
		t.Attr("result", s.Result)
	})
}

// today reports whether this is the newest gVisor: what costs much and does not differ
// from one gVisor to the next is replayed there only.
func today() bool { return gvisor.Name() == "today" }
