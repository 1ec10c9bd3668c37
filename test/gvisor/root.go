package gvisor

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/proof/contract"
)

// inside is the test's own program in the sandbox.
const inside = "/usr/local/bin/inside"

// makeRoot unpacks the root of a sandbox: a copy of its own, so that the archive
// stays as it is. The files are on the machine's own filesystem and not in an
// overlay there: gVisor's overlayfs makes whiteouts as devices 0/0, which Linux
// refuses in an overlay.
func (s *Sandbox) makeRoot(options Options) error {
	if options.DiskGiB > 0 {
		if err := s.mountDisk(options.DiskGiB); err != nil {
			return err
		}
	}
	address := Address
	if options.Beside != nil {
		address = BesideAddress
	}
	files := map[string]string{
		"/etc/hosts": "=127.0.0.1 localhost\n" + address + " sandbox\n",
		inside:       Program(contract.Inside),
	}
	maps.Copy(files, options.Files)
	if err := Fill(s.rootfs, Program(contract.Root), files); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.rootfs, "var/log/pods"), 0o755); err != nil {
		return err
	}
	if options.User != 0 {
		if err := s.makeHome(int(options.User)); err != nil {
			return err
		}
	}
	if options.DiskGiB > 0 {
		return s.fillDisk(int64(options.AvailableMiB) << 20)
	}
	return nil
}

// Home is the directory of the user of a sandbox who is not root.
const Home = "/home/user"

// makeHome makes it, and shows that user what is in root's.
func (s *Sandbox) makeHome(user int) error {
	if err := os.Chmod(filepath.Join(s.rootfs, "root"), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{Home, Home + "/.local", Home + "/.local/share"} {
		if err := os.MkdirAll(filepath.Join(s.rootfs, dir), 0o755); err != nil {
			return err
		}
		if err := os.Chown(filepath.Join(s.rootfs, dir), user, user); err != nil {
			return err
		}
	}
	return nil
}

// Fill makes the root of a sandbox, or of a virtual machine, in a directory: an archive,
// what the maintainer scripts of base-passwd and netbase would have made, and files as
// [Options] names them.
func Fill(dir, archive string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if output, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack the root: %w: %s", err, output)
	}
	for _, name := range []string{"dev", "proc", "sys", "tmp", "run", "root", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	all := map[string]string{
		"/etc/passwd": "=root:x:0:0:root:/root:/bin/sh\n",
		"/etc/group":  "=root:x:0:\n",
		"/etc/hosts":  "=127.0.0.1 localhost\n",
	}
	maps.Copy(all, files)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for path, from := range all {
		if err := put(root, path, from); err != nil {
			return fmt.Errorf("put %s into the root: %w", path, err)
		}
	}
	return nil
}

// put copies a file into a root. It follows no link out of the root: /var/run is one to
// the machine's own /run.
func put(root *os.Root, path, from string) error {
	path = strings.TrimPrefix(path, "/")
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if text, ok := strings.CutPrefix(from, "="); ok {
		return root.WriteFile(path, []byte(text), 0o644)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// mountDisk makes a filesystem in a sparse file and mounts it where the root will be.
func (s *Sandbox) mountDisk(gib int) error {
	image, point := filepath.Join(s.dir, "disk.img"), filepath.Dir(s.rootfs)
	if err := os.MkdirAll(point, 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"truncate", "--size", fmt.Sprintf("%dG", gib), image},
		{"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", "loop", image, point},
	} {
		if output, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("make a disk: %v: %w: %s", args, err, output)
		}
	}
	return nil
}

// fillDisk reserves blocks until so many bytes are left; the sparse file below
// stays small.
func (s *Sandbox) fillDisk(available int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.rootfs, &st); err != nil {
		return err
	}
	filler, err := os.Create(filepath.Join(filepath.Dir(s.rootfs), "filler"))
	if err != nil {
		return err
	}
	defer filler.Close()
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, int64(st.Bavail)*st.Frsize-available); err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	return nil
}

// Available is what was available of a disk, in bytes.
type Available struct {
	At    time.Time
	Bytes uint64
}

// WatchDisk notes what is available of the disk of the sandbox, as this machine sees it,
// every 20 ms until stop is called.
func (s *Sandbox) WatchDisk() (stop func() []Available) {
	ended, notes := make(chan struct{}), make(chan []Available)
	go func() {
		var all []Available
		defer func() { notes <- all }()
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case now := <-ticker.C:
				var st unix.Statfs_t
				if err := unix.Statfs(s.rootfs, &st); err == nil {
					all = append(all, Available{now, st.Bavail * uint64(st.Frsize)})
				}
			}
		}
	}()
	return func() []Available { close(ended); return <-notes }
}
