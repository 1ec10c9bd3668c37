package patch

import (
	"bufio"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
	"time"
)

// Header is the DEP-3 header of a patch.
type Header struct {
	Description string // the first line: what the patch does
	Long        string // the lines after it: why, without their indentation
	Origin      string
	Bug         string // an address, or "none" if no report was found
	Forwarded   string // an address, "no" or "not-needed"
	LastUpdate  time.Time
}

// required are the fields without which a patch is refused. DEP-3 asks for fewer:
// here a patch has to say where it stands with upstream.
var required = []string{"Description", "Origin", "Bug", "Forwarded", "Last-Update"}

// parseHeader reads the text before the line "---".
func parseHeader(text string) (Header, error) {
	fields, err := readFields(text)
	if err != nil {
		return Header{}, err
	}
	for _, name := range required {
		if fields[name] == "" {
			return Header{}, fmt.Errorf("the DEP-3 header has no %s field", name)
		}
	}
	date, err := time.Parse(time.DateOnly, fields["Last-Update"])
	if err != nil {
		return Header{}, fmt.Errorf("Last-Update is %q, not a date like 2026-11-23", fields["Last-Update"])
	}
	short, long, _ := strings.Cut(fields["Description"], "\n")
	return Header{
		Description: short,
		Long:        long,
		Origin:      fields["Origin"],
		Bug:         fields["Bug"],
		Forwarded:   fields["Forwarded"],
		LastUpdate:  date,
	}, nil
}

// readFields checks the header's syntax with net/textproto, which also folds
// continuation lines, and then keeps the line ends of the description, where a
// single full stop stands for an empty line.
func readFields(text string) (map[string]string, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, errors.New("it has no DEP-3 header")
	}
	reader := textproto.NewReader(bufio.NewReader(strings.NewReader(text + "\n\n")))
	if _, err := reader.ReadMIMEHeader(); err != nil {
		return nil, fmt.Errorf("its DEP-3 header cannot be read: %w", err)
	}
	fields := make(map[string]string)
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if continued := strings.TrimLeft(line, " \t"); continued != line {
			if continued == "." {
				continued = ""
			}
			fields[name] += "\n" + continued
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		name = key
		fields[name] = strings.TrimSpace(value)
	}
	return fields, nil
}
