package workdir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever is replaced, and however often, nothing but the file is there afterwards:
// rename(2) does nothing, and leaves both names, where they are links to one file.
func TestNothingIsLeftBeside(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "new", "to")
	if err := os.WriteFile(from, []byte("text"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, put := range []func() error{
			func() error { return LinkFile(from, to) },
			func() error { return LinkFile(from, to) },
			func() error { return CopyFile(from, to, 0o600) },
			func() error { return Symlink("elsewhere", to) },
		} {
			if err := put(); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(filepath.Dir(to))
			if err != nil || len(entries) != 1 {
				t.Fatalf("in the directory are %v, %v", entries, err)
			}
		}
	}
	if link, err := os.Readlink(to); err != nil || link != "elsewhere" {
		t.Errorf("the link goes to %q, %v", link, err)
	}
}

// A copy is not the file itself: who writes to it in place does not change the other.
func TestCopyIsAnotherFile(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := WriteFile(from, []byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := CopyFile(from, to, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, []byte("other"), 0); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(from)
	info, statErr := os.Stat(to)
	if err != nil || statErr != nil || string(data) != "text" || info.Mode() != 0o640 {
		t.Errorf("the source has %q, %v; the copy has mode %v, %v", data, err, info.Mode(), statErr)
	}
}

// The newest entries of each name stay, and those in use.
func TestPrune(t *testing.T) {
	tree := Tree{Root: t.TempDir()}
	for _, name := range []string{"a-1", "a-2", "a-3", "a-4", "a.stock-1", "b-1"} {
		if err := os.MkdirAll(tree.Work("out", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Prune("out", []string{tree.Work("out", "a-1")}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(tree.Work("out"))
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]int)
	for _, entry := range entries {
		byName[entry.Name()[:1+len(entry.Name())-len("x-1")]]++
	}
	if diff := cmp.Diff(map[string]int{"a": kept + 1, "a.stock": 1, "b": 1}, byName); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
