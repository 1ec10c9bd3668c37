package pin

import (
	"path/filepath"
	"slices"
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
	for distro, want := range map[string][]string{"": {"kubernetes"}, "kubernetes": {"kubernetes"}, "k3s": {"k3s"}} {
		selections, err := Select(sets, distro)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, selection := range selections {
			got = append(got, selection.Distribution)
			if selection.Upstream() == "" || PatchDigest(selection.Sets...) == "" {
				t.Errorf("distribution %s has version %q and patches %q", selection.Distribution, selection.Upstream(), PatchDigest(selection.Sets...))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("DISTRO=%s may be %v, want %v", distro, got, want)
		}
	}
}
