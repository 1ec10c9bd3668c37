package scenario

import (
	"errors"

	"k3s9p/internal/builder"
	"k3s9p/internal/hint"
	"k3s9p/internal/proof/report"
)

// experimentsOf are the gVisors that some runs replay the whole experiment in.
func experimentsOf(runs []Run) []string {
	var gvisors []string
	for _, run := range runs {
		if run.Scenario == experiment && run.Tests == "" {
			gvisors = append(gvisors, GVisor(run.Set))
		}
	}
	return gvisors
}

// clearReport removes what earlier runs of the experiment have written.
func clearReport(b *builder.Builder, runs []Run) error {
	var failures error
	for _, gvisor := range experimentsOf(runs) {
		failures = errors.Join(failures, report.Clear(b.Dist("reports"), gvisor))
	}
	return failures
}

// concludeReport puts together what the experiment has written. Where it was run in
// each gVisor, README.md and docs/ have to say the same.
func concludeReport(b *builder.Builder, runs []Run) error {
	gvisors := experimentsOf(runs)
	columns, err := report.Read(b.Dist("reports"), gvisors)
	if err != nil || len(columns) == 0 {
		return err
	}
	if err := report.Conclude(b.Dist("reports"), columns); err != nil {
		return err
	}
	all, err := gvisorsOf(b)
	if err != nil || len(gvisors) < len(all) {
		return err
	}
	return report.Compare(b.Root, columns)
}

// UpdateDocs brings README.md and docs/ to what the experiment has seen last.
func UpdateDocs(b *builder.Builder) error {
	all, err := gvisorsOf(b)
	if err != nil {
		return err
	}
	columns, err := report.Read(b.Dist("reports"), all)
	if err != nil {
		return err
	}
	if len(columns) < len(all) {
		return hint.Add(errors.New("dist/reports has no report of the experiment in each gVisor"), "go tool mage test:sandbox experiment")
	}
	return report.Update(b.Root, columns)
}

// gvisorsOf are the names of all gVisors.
func gvisorsOf(b *builder.Builder) ([]string, error) {
	sets, err := Sets(b.Root, "")
	var names []string
	for _, set := range sets {
		names = append(names, GVisor(set))
	}
	return names, err
}
