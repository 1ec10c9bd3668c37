package rmtree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a directory to remove, and one beside it whose content must survive.
func tree(t *testing.T) (doomed, witness string) {
	t.Helper()
	dir := t.TempDir()
	doomed, witness = filepath.Join(dir, "doomed"), filepath.Join(dir, "witness")
	for _, name := range []string{"doomed/a/b/mount", "doomed/shm", "witness/deep"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"doomed/file", "doomed/a/b/file", "witness/file", "witness/deep/file"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return doomed, witness
}

func survives(t *testing.T, witness string) {
	t.Helper()
	for _, name := range []string{"file", "deep/file"} {
		if _, err := os.ReadFile(filepath.Join(witness, name)); err != nil {
			t.Errorf("a file that was mounted below a removed directory is lost: %v", err)
		}
	}
}

func gone(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// mount binds a directory, and takes it away at the end whatever happened.
func mount(t *testing.T, source, target string, flags uintptr) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(target, unix.MNT_DETACH) == nil {
		}
	})
}

// without runs a test on a kernel with openat2(2), and as on one without.
func without(t *testing.T, test func(t *testing.T)) {
	t.Run("with openat2", test)
	t.Run("without openat2", func(t *testing.T) {
		openat2 = func(int, string, *unix.OpenHow) (int, error) { return -1, unix.ENOSYS }
		t.Cleanup(func() { openat2 = unix.Openat2 })
		test(t)
	})
}

func TestABindMountIsDetachedAndItsContentStays(t *testing.T) {
	without(t, func(t *testing.T) {
		doomed, witness := tree(t)
		mount(t, witness, filepath.Join(doomed, "a/b/mount"), 0)
		mount(t, witness, filepath.Join(doomed, "shm"), 0)
		mount(t, filepath.Join(witness, "deep"), filepath.Join(doomed, "shm", "deep"), 0)
		if err := Tree(doomed); err != nil {
			t.Fatal(err)
		}
		survives(t, witness)
		gone(t, doomed)
	})
}

func TestTheDirectoryItselfMayBeAMount(t *testing.T) {
	doomed, witness := tree(t)
	mount(t, witness, doomed, 0)
	if err := Tree(doomed); err != nil {
		t.Fatal(err)
	}
	survives(t, witness)
	gone(t, doomed)
}

// A mount that comes while the tree is removed stops the removal at its edge.
func TestAMountThatIsNotInTheTableIsNotEntered(t *testing.T) {
	without(t, func(t *testing.T) {
		doomed, witness := tree(t)
		mount(t, witness, filepath.Join(doomed, "shm"), 0)
		parent, err := os.Open(filepath.Dir(doomed))
		if err != nil {
			t.Fatal(err)
		}
		defer parent.Close()
		if err := remove(int(parent.Fd()), filepath.Base(doomed), doomed); !errors.Is(err, ErrMounted) {
			t.Errorf("a mount was not noticed: %v", err)
		}
		survives(t, witness)
	})
}

func TestABoundFileStays(t *testing.T) {
	doomed, witness := tree(t)
	mount(t, filepath.Join(witness, "file"), filepath.Join(doomed, "file"), 0)
	if err := Tree(doomed); err != nil {
		t.Fatal(err)
	}
	survives(t, witness)
	gone(t, doomed)
}

func TestLinksAreRemovedAndNotFollowed(t *testing.T) {
	doomed, witness := tree(t)
	for link, target := range map[string]string{"a/link": witness, "a/file-link": filepath.Join(witness, "file")} {
		if err := os.Symlink(target, filepath.Join(doomed, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tree(doomed); err != nil {
		t.Fatal(err)
	}
	survives(t, witness)
	gone(t, doomed)
	link := doomed + "-link"
	if err := os.Symlink(witness, link); err != nil {
		t.Fatal(err)
	}
	if err := Tree(link); err != nil {
		t.Fatal(err)
	}
	survives(t, witness)
	gone(t, link)
}

func TestWhatIsNotWritableOrLargeIsRemovedToo(t *testing.T) {
	doomed, _ := tree(t)
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(doomed, "a", fmt.Sprintf("file-%d", i)), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a/b", "a", ""} {
		if err := os.Chmod(filepath.Join(doomed, name), 0o500); err != nil {
			t.Fatal(err)
		}
	}
	if err := Tree(doomed); err != nil {
		t.Fatal(err)
	}
	gone(t, doomed)
}

func TestNothingToRemove(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{filepath.Join(dir, "missing"), filepath.Join(dir, "missing", "below")} {
		if err := Tree(name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if err := Tree("/"); err == nil {
		t.Error("the root of the machine was to be removed")
	}
}
