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

func TestVendor(t *testing.T) {
	for release, want := range map[string]string{
		"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n": "debian",
		"NAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=debian\n":             "ubuntu",
		"ID_LIKE=debian\nID='linuxmint'\n":                                               "linuxmint",
		"":                                                                               "debian",
	} {
		if got := vendor(release); got != want {
			t.Errorf("the packages of %q are %s's", release, got)
		}
	}
}

// Programs that are for another architecture than their record says are in no release.
func TestArchitecture(t *testing.T) {
	from, err := dist()
	if err != nil {
		t.Fatal(err, from)
	}
	d, err := readDistribution(from)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := executables(d.build, from); err != nil {
		t.Error(err)
	}
	d.build.Toolchain.Platform = "linux/mips"
	if _, err := executables(d.build, from); err == nil || !strings.Contains(err.Error(), "and its record is for linux/mips") {
		t.Errorf("programs for another architecture: %v", err)
	}
}
