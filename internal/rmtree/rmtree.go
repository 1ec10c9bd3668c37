// Package rmtree removes directories without ever following a mount out of them.
//
// os.RemoveAll deletes what is mounted below a directory: of a bind mount the
// original, of a half-made Debian root the machine's own /dev/shm. Whatever this
// project removes recursively, it removes with this package.
//
// It is not for directories that somebody else renames meanwhile.
package rmtree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrMounted is wrapped by the error about a directory on which something is
// mounted that could not be detached. What is mounted there is as it was.
var ErrMounted = errors.New("something is mounted there")

// Tree detaches what is mounted at and below dir, then removes dir and all below
// it. It follows no symbolic link, and removes nothing if a mount cannot be
// detached. A directory that does not exist is no error.
func Tree(dir string) error {
	parent, err := filepath.Abs(filepath.Dir(dir))
	if err == nil {
		parent, err = filepath.EvalSymlinks(parent) // as the mount table has it
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	path := filepath.Join(parent, filepath.Base(dir))
	if path == "/" || filepath.Base(dir) == ".." {
		return fmt.Errorf("remove %s: that is not a directory to remove", dir)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSymlink == 0 {
		if err := detach(path); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	handle, err := os.Open(parent)
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	defer handle.Close()
	return remove(int(handle.Fd()), filepath.Base(path), path)
}

// Mounts lists the mount points at and below a directory, outer ones first.
func Mounts(dir string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	var points []string
	for _, mount := range mounts {
		points = append(points, mount.Mountpoint)
	}
	return points, err
}

// detach unmounts what is mounted at and below a directory. Of a mount of others
// only the place here goes; its content stays.
func detach(dir string) error {
	mounts, err := Mounts(dir)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(mounts) {
		// A mount below a shared one may be gone with it.
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	if left, err := Mounts(dir); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("%w: %s", ErrMounted, strings.Join(left, ", ")))
	}
	return nil
}

// remove removes an entry of the directory parent; path is for errors.
func remove(parent int, name, path string) error {
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove %s: %w", path, ErrMounted)
	}
	var st unix.Stat_t
	if statErr := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); statErr != nil {
		return &os.PathError{Op: "remove", Path: path, Err: statErr}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	if err := empty(parent, name, path); err != nil {
		return err
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// empty removes the entries of a directory.
func empty(parent int, name, path string) error {
	fd, err := enter(parent, name)
	if errors.Is(err, unix.EACCES) { // a tree of the module cache is not writable
		if err = unix.Fchmodat(parent, name, 0o700, 0); err == nil {
			fd, err = enter(parent, name)
		}
	}
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("remove %s: %w", path, ErrMounted)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	if unix.Faccessat(fd, ".", unix.W_OK|unix.X_OK, 0) != nil {
		if err := dir.Chmod(0o700); err != nil {
			return err
		}
	}
	for {
		names, err := dir.Readdirnames(1024)
		for _, entry := range names {
			if err := remove(fd, entry, filepath.Join(path, entry)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(names) > 0 { // what is removed while it is read may hide the rest
			if _, err := dir.Seek(0, io.SeekStart); err != nil {
				return err
			}
		}
	}
}

// enter opens a subdirectory, or fails with EXDEV if that is on another mount than
// its parent, a bind mount of the same filesystem included.
func enter(parent int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := openat2(parent, name, &unix.OpenHow{
		Flags:   flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if !errors.Is(err, unix.ENOSYS) { // gVisor has none (pkg/sentry/syscalls/linux/linux64.go)
		return fd, err
	}
	fd, err = unix.Openat(parent, name, flags, 0)
	if err != nil {
		return -1, err
	}
	same, err := sameMount(parent, fd)
	if err == nil && !same {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openat2 is a variable for the tests: gVisor and Linux before 5.6 lack it.
var openat2 = unix.Openat2

// sameMount compares the mounts of two open files by the number that statx(2)
// gives since Linux 5.8, and by device where it gives none: then a bind mount of
// the same filesystem that appeared after [detach] is not recognised.
func sameMount(a, b int) (bool, error) {
	var x, y unix.Statx_t
	for fd, st := range map[int]*unix.Statx_t{a: &x, b: &y} {
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, st); err != nil {
			return false, err
		}
	}
	if x.Mask&y.Mask&unix.STATX_MNT_ID != 0 {
		return x.Mnt_id == y.Mnt_id, nil
	}
	return x.Dev_major == y.Dev_major && x.Dev_minor == y.Dev_minor, nil
}
