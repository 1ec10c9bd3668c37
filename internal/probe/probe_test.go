package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	children["hangs"] = func([]string) error { time.Sleep(time.Hour); return nil }
	children["panics"] = func([]string) error { panic("the kernel sent something unexpected") }
	children["ends"] = func([]string) error { os.Exit(0); return nil }
	children["unclear"] = func([]string) error { return withScratch("/proc/nowhere", nil) }
	children["refused"] = func([]string) error { return errors.New("two\nlines") }
	children["mounts"] = func(args []string) error { return unix.Mount("tmpfs", args[0], "tmpfs", 0, "") }
	Init()
	os.Exit(m.Run())
}

// Nothing that a probe meets ends or stops the program that asked.
func TestAProbeCannotHarmItsCaller(t *testing.T) {
	for _, c := range []struct{ name, says string }{
		{"hangs", "gave no answer"},
		{"panics", "the kernel sent something unexpected"},
		{"ends", "without an answer"},
		{"unclear", "make a directory for a probe"},
	} {
		ctx := t.Context()
		if c.name == "hangs" {
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			ctx = short
		}
		err := isolated(ctx, 0, c.name)
		if !errors.Is(err, ErrUnclear) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("a probe that %s gives %v", c.name, err)
		}
	}
	if err := isolated(t.Context(), 0, "refused"); err == nil || errors.Is(err, ErrUnclear) || err.Error() != "two lines" {
		t.Errorf("a probe that was refused gives %v", err)
	}
}

func TestANamespaceThatIsRefusedIsNoFinding(t *testing.T) {
	if err := isolated(t.Context(), 1, "refused"); !errors.Is(err, ErrUnclear) {
		t.Errorf("a flag of unshare that nobody knows gives %v", err)
	}
}

func TestWhatAProbeMountsIsNotSeenOutside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a mount namespace needs root")
	}
	dir := t.TempDir()
	if err := isolated(t.Context(), unix.CLONE_NEWNS, "mounts", dir); err != nil {
		t.Fatal(err)
	}
	if mount, err := MountOf(dir); err != nil || mount.Mountpoint == dir {
		t.Errorf("the mount of a probe is still there: %v, %v", mount, err)
	}
}

func TestScratchIsRemoved(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, scratch+"old")
	if err := os.MkdirAll(filepath.Join(old, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if err := withScratch(dir, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("a probe left %v", left)
	}
}

// On Linux a limit is enforced; whether it is here depends on the machine, but the
// probe has an answer.
func TestMemoryLimit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a cgroup needs root")
	}
	if err := MemoryLimit(t.Context()); err != nil {
		t.Logf("memory limits: %v", err)
		if errors.Is(err, ErrUnclear) {
			t.Skip("no cgroup can be made here")
		}
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/k3s9p-probe-*"); len(left) > 0 {
		t.Errorf("the probe left %v", left)
	}
}
