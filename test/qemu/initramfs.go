package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cavaliergopher/cpio"

	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
)

// modules are those without which the root cannot be mounted, each after those that it
// needs, below the kernel's directory of modules.
var modules = []string{
	"drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko", "drivers/virtio/virtio_pci_legacy_dev.ko",
	"drivers/virtio/virtio_pci_modern_dev.ko", "drivers/virtio/virtio_pci.ko",
	"fs/netfs/netfs.ko", "fs/fscache/fscache.ko", "net/9p/9pnet.ko", "net/9p/9pnet_virtio.ko", "fs/9p/9p.ko",
}

// makeInitramfs writes the initial file system: the program guest and the modules
// (kernel documentation, driver-api/early-userspace/buffer-format).
func (m *Machine) makeInitramfs(k kernel) error {
	file, err := os.Create(m.path("initramfs"))
	if err != nil {
		return err
	}
	defer file.Close()
	archive := cpio.NewWriter(file)
	err = add(archive, "init", gvisor.Program(contract.Guest))
	for _, name := range []string{"dev", "proc", "root", "modules"} {
		err = errors.Join(err, archive.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755}))
	}
	for i, module := range modules {
		err = errors.Join(err, add(archive, fmt.Sprintf("modules/%02d-%s", i, filepath.Base(module)), filepath.Join(k.modules, module)))
	}
	if err := errors.Join(err, archive.Close(), file.Close()); err != nil {
		return fmt.Errorf("make the initial file system: %w", err)
	}
	return nil
}

func add(archive *cpio.Writer, name, from string) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}
