package patch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Files of a patched tree are links to the stock tree: a patch must not write
// through them.
func TestApplyLeavesTheStockTree(t *testing.T) {
	stock, tree := t.TempDir(), t.TempDir()
	for _, step := range []error{
		os.WriteFile(filepath.Join(stock, "a.go"), []byte("one\ntwo\n"), 0o640),
		os.Link(filepath.Join(stock, "a.go"), filepath.Join(tree, "a.go")),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	p, err := parse([]byte(good + separator + "diff --git a/a.go b/a.go\n--- a/a.go\n+++ b/a.go\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Series{Patches: []Patch{p}}).Apply(tree, "m", "v1.0.0"); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{filepath.Join(stock, "a.go"): "one\ntwo\n", filepath.Join(tree, "a.go"): "one\nthree\n"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", file, got, err, want)
		}
	}
	if info, err := os.Stat(filepath.Join(tree, "a.go")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the patched file has mode %v (%v), want that of the old one", info.Mode(), err)
	}
}

// In another version than its own a hunk may stand elsewhere, if its lines stand there
// and nowhere else; in its own it may not, and in no version may one of its lines
// differ.
func TestMovedHunks(t *testing.T) {
	const diff = "diff --git a/a.go b/a.go\n--- a/a.go\n+++ b/a.go\n@@ -1,2 +1,2 @@\n one\n-two\n+TWO\n@@ -5,2 +5,2 @@\n five\n-six\n+SIX\n"
	for _, test := range []struct {
		name, version, source, want string
		moved                       []int
		refused                     string
	}{
		{name: "own version, exact", version: "v1.0.0", source: "one two 3 4 five six 7", want: "one TWO 3 4 five SIX 7"},
		{name: "own version, moved", version: "v1.0.0", source: "0 one two 3 4 five six", refused: "hunk 1 does not apply at a.go:1"},
		{name: "other version, exact", version: "v1.1.0", source: "one two 3 4 five six 7", want: "one TWO 3 4 five SIX 7"},
		{name: "other version, both moved", version: "v1.1.0", source: "0 one two 3 five six 7", want: "0 one TWO 3 five SIX 7", moved: []int{1}},
		{name: "other version, moved apart", version: "v1.1.0", source: "one two 2 2 2 3 4 five six", want: "one TWO 2 2 2 3 4 five SIX", moved: []int{3}},
		{name: "other version, two places", version: "v1.1.0", source: "one two 3 five six 4 five six", refused: "hunk 2 does not apply at a.go:5"},
		{name: "other version, another line", version: "v1.1.0", source: "0 one tvo 3 4 five six", refused: "hunk 1 does not apply at a.go:1"},
		{name: "other version, crossed", version: "v1.1.0", source: "five six 3 one two", refused: "does not apply"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.go")
			lines := func(words string) string { return strings.ReplaceAll(words, " ", "\n") + "\n" }
			if err := os.WriteFile(file, []byte(lines(test.source)), 0o644); err != nil {
				t.Fatal(err)
			}
			p, err := parse([]byte(good + separator + diff))
			if err != nil {
				t.Fatal(err)
			}
			p.Name = "0001-count.patch"
			s := Series{Modules: []Target{{"m", []string{"v1.0.0", "v1.1.0"}}}, Patches: []Patch{p}}
			moved, err := s.Apply(filepath.Dir(file), "m", test.version)
			if test.refused != "" {
				if err == nil || !strings.Contains(err.Error(), test.refused) {
					t.Fatalf("got %v and %v, want an error with %q", moved, err, test.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(file); err != nil || string(got) != lines(test.want) {
				t.Errorf("got %q (%v), want %q", got, err, lines(test.want))
			}
			var by []int
			for _, m := range moved {
				by = append(by, m.Lines)
			}
			if !slices.Equal(by, test.moved) {
				t.Errorf("moved by %v lines, want %v", by, test.moved)
			}
		})
	}
}
