package report

import (
	"fmt"
	"slices"
	"strings"
)

// Table is a line for each step, with its result in each gVisor. It has nothing in it
// that differs from run to run.
func Table(columns []Column) string {
	var table strings.Builder
	table.WriteString("| step | what bites, or was tried |")
	for _, c := range columns {
		fmt.Fprintf(&table, " %s |", date(c.GVisor))
	}
	table.WriteString("\n| --- | --- |" + strings.Repeat(" --- |", len(columns)) + "\n")
	for _, step := range steps(columns) {
		fmt.Fprintf(&table, "| %s | %s |", step.ID, escape(step.Title))
		for _, c := range columns {
			result := "–" // it was not run there
			if i := slices.IndexFunc(c.Steps, func(s Step) bool { return s.ID == step.ID }); i >= 0 {
				result = c.Steps[i].Result
			}
			fmt.Fprintf(&table, " %s |", result)
		}
		table.WriteString("\n")
	}
	return table.String()
}

// causesTable is what a kubelet says with which patches.
func causesTable(c Column) string {
	var table strings.Builder
	table.WriteString("| patches | what the kubelet says |\n| --- | --- |\n")
	for _, s := range causes(c) {
		says := words(s.Expected)
		if s.Result == Passed {
			says = "it is healthy: " + s.Expected
		}
		fmt.Fprintf(&table, "| %s | %s |\n", escape(s.Title), escape(says))
	}
	return table.String()
}

// cgroups is the end of the name of a workaround that was tried with the cgroups patched.
const cgroups = "-cgroups"

// workaroundsSentence says which workarounds would have helped against 9p.
func workaroundsSentence(c Column) string {
	var tried, help []string
	for _, s := range c.Steps {
		if s.Kind != Workaround || !strings.HasSuffix(s.ID, cgroups) {
			continue
		}
		of := strings.TrimSuffix(s.ID, cgroups)
		tried = append(tried, of)
		if i := slices.IndexFunc(c.Steps, func(other Step) bool { return other.ID == of }); i >= 0 && s.Result == Helps {
			help = append(help, c.Steps[i].Title)
		}
	}
	return fmt.Sprintf("Of the experiment's %d workarounds %d would have helped against 9p:\n%s.\n"+
		"It could not see that, because the cgroups ended its kubelet first.\n", len(tried), len(help), strings.Join(help, "; "))
}

// steps are those of all columns, each once, in the order of the report.
func steps(columns []Column) []Step {
	var all []Step
	for _, c := range columns {
		for _, step := range c.Steps {
			if !slices.ContainsFunc(all, func(s Step) bool { return s.ID == step.ID }) {
				all = append(all, step)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Step) int { return rank(a) - rank(b) })
	return all
}

var months = []string{"", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"}

// date is what a gVisor called YYYYMM is of.
func date(gvisor string) string {
	var year, month int
	if n, err := fmt.Sscanf(gvisor, "%4d%2d", &year, &month); n != 2 || err != nil || month < 1 || month > 12 {
		return "gVisor " + gvisor
	}
	return fmt.Sprintf("%s %d", months[month], year)
}

// document is experiment.md.
func document(columns []Column) string {
	var text strings.Builder
	text.WriteString("# The experiment, replayed\n\n![Which error hides behind which](experiment.svg)\n\n" + Table(columns))
	for _, c := range columns {
		fmt.Fprintf(&text, "\n## %s\n", date(c.GVisor))
		for _, s := range c.Steps {
			fmt.Fprintf(&text, "\n### %s: %s\n\n%s\n\n", s.ID, s.Result, s.Title)
			for _, line := range [][2]string{{"expected", words(s.Expected)}, {"seen", words(s.Seen)}, {"fix", s.Fix}, {"evidence", words(s.Evidence)}} {
				if line[1] != "" {
					fmt.Fprintf(&text, "- %s: %s\n", line[0], line[1])
				}
			}
		}
	}
	return text.String()
}

// words shows what a program said.
func words(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.NewReplacer("`", "'", "\n", " ").Replace(text) + "`"
}

func escape(text string) string { return strings.ReplaceAll(text, "|", "\\|") }
