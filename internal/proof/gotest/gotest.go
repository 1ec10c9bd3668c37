// Package gotest reads what go test -json writes (go doc test2json).
package gotest

import (
	"bufio"
	"encoding/json"
	"io"
)

// Event is one line of it.
type Event struct {
	Action     string // run, output, attr, pass, fail, skip, build-output, …
	Package    string
	ImportPath string // of what a build-output is of
	Test       string
	Output     string
	// FailedBuild is the ImportPath of what did not compile, where that is why a
	// package fails.
	FailedBuild string
	Key, Value  string  // of an attribute that a test has set (testing.T.Attr)
	Elapsed     float64 // seconds
}

// lineLimit is more than go test writes in one line.
const lineLimit = 16 << 20 // bytes

// Read calls f with each event. A line that is none, which a program that was run
// may have printed, is an event without an action, with the line as its output.
func Read(r io.Reader, f func(Event)) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, lineLimit)
	for scanner.Scan() {
		var event Event
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			event = Event{Output: scanner.Text() + "\n"}
		}
		f(event)
	}
	return scanner.Err()
}
