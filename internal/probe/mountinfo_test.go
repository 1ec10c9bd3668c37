package probe

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The tables are /proc/self/mountinfo of the machines that they are called after.
func table(t *testing.T, name string) io.Reader {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", "mountinfo-"+name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestMountOf(t *testing.T) {
	for _, c := range []struct{ table, path, mountpoint, fstype, source string }{
		{"linux-cgroup-v1", "/var/lib/k3s9p", "/", "ext4", "/dev/vda"},
		{"linux-cgroup-v1", "/run/netns/a", "/run/netns", "ext4", "/dev/vda"},
		{"linux-cgroup-v1", "/run/netnsx", "/", "ext4", "/dev/vda"},
		{"gvisor-202609", "/var/lib/k3s9p", "/", "9p", "none"},
		{"gvisor-202609", "/dev/kmsg", "/dev", "dev", "none"},
		{"gvisor-202509", "/dev/kmsg", "/dev", "tmpfs", "none"},
		// Of two mounts at one place the later one is seen.
		{"linux-cgroup-v1", "/dev/shm/a", "/dev/shm", "tmpfs", "tmpfs"},
	} {
		mount, err := mountOf(table(t, c.table), c.path)
		if err != nil || mount.Mountpoint != c.mountpoint || mount.FSType != c.fstype || mount.Source != c.source {
			t.Errorf("%s: %s is on %+v, %v", c.table, c.path, mount, err)
		}
	}
}

func TestUnshared(t *testing.T) {
	got, err := unshared(table(t, "linux-propagation"))
	want := []Unsharing{{"/tmp/hp", Private}, {"/tmp/hp/slave", Slave}, {"/tmp/hp/unbindable", Unbindable}, {"/tmp/hp/private", Private}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for name, want := range map[string]bool{"linux-cgroup-v1": true, "linux-propagation": false, "gvisor-202609": true, "gvisor-202509": true} {
		if got, err := unshared(table(t, name)); err != nil || slices.ContainsFunc(got, Unsharing.IsRoot) != want {
			t.Errorf("%s: / is not shared: %v; %v", name, got, err)
		}
	}
}

func TestCgroups(t *testing.T) {
	for _, c := range []struct {
		table string
		want  int
	}{{"linux-cgroup-v1", 10}, {"linux-propagation", 0}, {"gvisor-202609", 0}} {
		if got, err := cgroupMounts(table(t, c.table), CgroupRoot); err != nil || len(got) != c.want {
			t.Errorf("%s: %v, %v", c.table, got, err)
		}
	}
}
