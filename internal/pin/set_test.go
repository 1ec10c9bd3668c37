package pin

import (
	"path/filepath"
	"testing"
)

// What build/ and patches/ of this repository say can be read, and each set can be
// built: every key is known, every pin has a checksum, every series its version.
func TestRepository(t *testing.T) {
	sets, err := ReadSets(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		if _, err := set.Flags(); err != nil {
			t.Error(err)
		}
	}
	selection, err := Select(sets, "")
	if err != nil {
		t.Fatal(err)
	}
	if selection.Upstream() == "" || PatchDigest(selection.Sets...) == "" {
		t.Errorf("distribution %s has version %q and patches %q", selection.Distribution, selection.Upstream(), PatchDigest(selection.Sets...))
	}
}
