package release

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A release of k3s would say nothing of what is in its archive: there is none.
func TestNoReleaseOfK3s(t *testing.T) {
	for distribution, refused := range map[string]bool{"k3s": true, "kubernetes": false} {
		dir := t.TempDir()
		text := `{"distribution": "` + distribution + `", "toolchain": {"platform": "linux/amd64"}}`
		if err := os.WriteFile(filepath.Join(dir, "build.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := readDistribution(dir)
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "hint: DISTRO=kubernetes") {
			t.Errorf("a release of %s: %v", distribution, err)
		}
	}
}
