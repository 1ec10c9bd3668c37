package report

import (
	"bytes"
	"fmt"
	"os"

	"k3s9p/internal/hint"
)

// The lines between which a document has the table of the experiment.
const (
	begin = "<!-- experiment: go tool mage docs writes this table -->\n"
	end   = "<!-- end of experiment -->\n"
)

// Update puts the table of some columns into a document.
func Update(file string, columns []Column) error {
	old, updated, err := replaceTable(file, Table(columns))
	if err != nil || bytes.Equal(old, updated) {
		return err
	}
	return os.WriteFile(file, updated, 0o644)
}

// Compare is an error if a document has another table than that of some columns.
func Compare(file string, columns []Column) error {
	old, updated, err := replaceTable(file, Table(columns))
	if err == nil && !bytes.Equal(old, updated) {
		err = hint.Add(fmt.Errorf("%s has another table than what was seen", file), "look at dist/reports/experiment.md; if that is right: go tool mage docs")
	}
	return err
}

func replaceTable(file, table string) (old, updated []byte, err error) {
	if old, err = os.ReadFile(file); err != nil {
		return nil, nil, err
	}
	before, rest, found := bytes.Cut(old, []byte(begin))
	_, after, closed := bytes.Cut(rest, []byte(end))
	if !found || !closed {
		return nil, nil, fmt.Errorf("%s has no place for the table of the experiment, between %q and %q", file, begin, end)
	}
	return old, bytes.Join([][]byte{before, []byte(begin), []byte(table), []byte(end), after}, nil), nil
}
