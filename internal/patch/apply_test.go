package patch

import (
	"os"
	"path/filepath"
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
	if err := (Series{Patches: []Patch{p}}).Apply(tree, "m v1.0.0"); err != nil {
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
