package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
)

// kernel is the one of the root, by paths here.
type kernel struct{ image, modules string }

func (m *Machine) root() string { return m.path("root") }

// makeRoot unpacks the root of a machine, and finds its kernel.
func (m *Machine) makeRoot(options Options) (kernel, error) {
	files := map[string]string{
		"/etc/resolv.conf":     "=nameserver 10.0.2.3\n", // that of QEMU's user network
		"/usr/local/bin/guest": gvisor.Program(contract.Guest),
	}
	maps.Copy(files, options.Files)
	if err := gvisor.Fill(m.root(), gvisor.Program(contract.LinuxRoot), files); err != nil {
		return kernel{}, err
	}
	k, err := findKernel(m.root())
	if err != nil {
		return kernel{}, err
	}
	if options.Security == MappedXattr {
		err = mapLinks(m.root())
	}
	return k, err
}

func findKernel(root string) (kernel, error) {
	images, _ := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	modules, _ := filepath.Glob(filepath.Join(root, "lib", "modules", "*", "kernel"))
	if len(images) != 1 || len(modules) != 1 {
		return kernel{}, fmt.Errorf("the root has %d kernels and modules of %d, not of one", len(images), len(modules))
	}
	return kernel{images[0], modules[0]}, nil
}

// mapLinks makes of each symbolic link what QEMU has made of it with mapped-xattr: a
// file with the target, whose kind is in an attribute (QEMU hw/9pfs/9p-local.c,
// local_symlink and local_set_xattr).
func mapLinks(root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type() != fs.ModeSymlink {
			return err
		}
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte(target), 0o600)); err != nil {
			return err
		}
		for name, value := range map[string]uint32{"uid": 0, "gid": 0, "mode": unix.S_IFLNK | 0o777} {
			if err := unix.Setxattr(path, "user.virtfs."+name, binary.LittleEndian.AppendUint32(nil, value), 0); err != nil {
				return fmt.Errorf("set an attribute of %s: %w", path, err)
			}
		}
		return nil
	})
}
