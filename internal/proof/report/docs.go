package report

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/hint"
)

// The lines between which a document has a part that is made of the report.
const (
	begin = "<!-- %s: go tool mage docs writes this -->\n"
	end   = "<!-- end of %s -->\n"
)

// part is one of the repository's documents that is made of the report: what is between
// the lines with a name, or the whole file if that is "".
type part struct{ file, name, text string }

func parts(columns []Column) []part {
	newest := columns[0]
	return []part{
		{"README.md", "causes", causesTable(newest)},
		{"README.md", "workarounds", workaroundsSentence(newest)},
		{filepath.Join("docs", "experiment.md"), "experiment", Table(columns)},
		{filepath.Join("docs", "experiment.svg"), "", picture(newest)},
	}
}

// Update brings the documents of a repository to what some columns say, of which the
// first is that of the newest gVisor.
func Update(root string, columns []Column) error {
	var failures error
	for _, p := range parts(columns) {
		old, updated, err := p.in(root)
		if err == nil && !bytes.Equal(old, updated) {
			err = os.WriteFile(filepath.Join(root, p.file), updated, 0o644)
		}
		failures = errors.Join(failures, err)
	}
	return failures
}

// Compare is an error if a document says something else than some columns.
func Compare(root string, columns []Column) error {
	var failures error
	for _, p := range parts(columns) {
		old, updated, err := p.in(root)
		if err == nil && !bytes.Equal(old, updated) {
			err = fmt.Errorf("%s says something else than what was seen", p.file)
		}
		failures = errors.Join(failures, err)
	}
	if failures != nil {
		failures = hint.Add(failures, "look at dist/reports/experiment.md; if that is right: go tool mage docs")
	}
	return failures
}

// in returns the file as it is, and as it has to be.
func (p part) in(root string) (old, updated []byte, err error) {
	old, err = os.ReadFile(filepath.Join(root, p.file))
	if p.name == "" {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return old, []byte(p.text), err
	}
	if err != nil {
		return nil, nil, err
	}
	from, to := fmt.Appendf(nil, begin, p.name), fmt.Appendf(nil, end, p.name)
	before, rest, found := bytes.Cut(old, from)
	_, after, closed := bytes.Cut(rest, to)
	if !found || !closed {
		return nil, nil, fmt.Errorf("%s has no place for the %s, between %q and %q", p.file, p.name, from, to)
	}
	return old, bytes.Join([][]byte{before, from, []byte(p.text), to, after}, nil), nil
}
