package command

import (
	"slices"
	"strings"
	"testing"

	"k3s9p/internal/progress"
)

// What a command that has failed said is not lost among the lines in which it said how
// far it was, however many came after.
func TestNoise(t *testing.T) {
	seen := 0
	c := Command{Args: []string{"sh", "-c", "echo 'a.go:1:2: undefined: x' >&2; i=0; while [ $i -lt 500 ]; do echo example.com/package >&2; i=$((i+1)); done; exit 1"},
		Line:  func(string) { seen++ },
		Noise: func(line string) bool { return !strings.Contains(line, " ") }}
	_, err := Runner{UI: progress.New(false)}.Run(t.Context(), c)
	if err == nil || !slices.Equal(Stderr(err), []string{"a.go:1:2: undefined: x"}) || seen != 501 {
		t.Errorf("after %d lines: %v", seen, err)
	}
}
