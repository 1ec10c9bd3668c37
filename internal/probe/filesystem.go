package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"k3s9p/internal/rmtree"
	"k3s9p/internal/userns"
)

// MountOf returns the mount that a path is on: of several at one place the last,
// which hides the others.
func MountOf(path string) (*mountinfo.Info, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return nil, err
	}
	var found *mountinfo.Info
	for _, mount := range mounts {
		if found == nil || len(mount.Mountpoint) >= len(found.Mountpoint) {
			found = mount
		}
	}
	if found == nil {
		return nil, fmt.Errorf("the mount table has no mount for %s", path)
	}
	return found, nil
}

// Propagation is how a mount passes on what is mounted below it (kernel
// documentation, filesystems/sharedsubtree).
type Propagation string

const (
	Private    Propagation = "private"
	Slave      Propagation = "slave"
	Unbindable Propagation = "unbindable"
)

// Unsharing is a mount that does not pass on what is mounted below it.
type Unsharing struct {
	Mountpoint  string      `json:"mountpoint"`
	Propagation Propagation `json:"propagation"`
}

// Unshared returns the mounts whose optional fields in /proc/self/mountinfo have
// no "shared:".
func Unshared() ([]Unsharing, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	var unshared []Unsharing
	for _, mount := range mounts {
		switch {
		case strings.Contains(mount.Optional, "shared:"):
		case strings.Contains(mount.Optional, "master:"):
			unshared = append(unshared, Unsharing{mount.Mountpoint, Slave})
		case strings.Contains(mount.Optional, "unbindable"):
			unshared = append(unshared, Unsharing{mount.Mountpoint, Unbindable})
		default:
			unshared = append(unshared, Unsharing{mount.Mountpoint, Private})
		}
	}
	return unshared, nil
}

// Disk is what statfs(2) says of the filesystem of a path.
type Disk struct {
	Bytes, BytesAvailable uint64 // of those that are not root
	Inodes, InodesFree    uint64 // 0 and 0 where there is no inode table
}

// DiskOf asks statfs(2).
func DiskOf(path string) (Disk, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return Disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := uint64(s.Frsize)
	return Disk{Bytes: unit * s.Blocks, BytesAvailable: unit * s.Bavail, Inodes: s.Files, InodesFree: s.Ffree}, nil
}

// scratch is how the directories are called that probes make and remove.
const scratch = ".probe-"

// withScratch calls f with a new directory below dir. It is made and removed here
// and not in the child, which may be killed; what an earlier process left that was
// itself killed goes as well.
func withScratch(dir string, f func(root string) error) error {
	left, _ := filepath.Glob(filepath.Join(dir, scratch+"*"))
	for _, name := range left {
		if info, err := os.Lstat(name); err == nil && time.Since(info.ModTime()) > 10*limit {
			_ = rmtree.Tree(name)
		}
	}
	root, err := os.MkdirTemp(dir, scratch)
	if err != nil {
		return fmt.Errorf("%w: make a directory for a probe: %w", ErrUnclear, err)
	}
	defer rmtree.Tree(root)
	return f(root)
}

// layers makes the directories of an overlay in root, with a file and a directory
// in the lower one.
func layers(root string) error {
	var err error
	for _, name := range []string{"lower/directory", "upper", "work", "merged"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, name), 0o755))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(root, "lower", "file"), []byte("lower"), 0o644))
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	return err
}

// layerOptions are the mount options for the directories of [layers].
func layerOptions(root string) string {
	return fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", root)
}

// Overlay does with the kernel's overlayfs what a snapshotter and an image ask
// of it below dir: mount, delete a file of the lower layer (a whiteout: a device
// 0/0 in the upper one), rewrite a directory.
func Overlay(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error {
		if err := layers(root); err != nil {
			return err
		}
		return isolated(ctx, unix.CLONE_NEWNS, "overlay", root)
	})
}

// OverlayOnTmpfs is [Overlay] with all layers on a tmpfs that is mounted for it.
func OverlayOnTmpfs(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error { return isolated(ctx, unix.CLONE_NEWNS, "overlay-tmpfs", root) })
}

func overlayOnTmpfs(root string) error {
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	if err := layers(root); err != nil {
		return err
	}
	return overlay(root)
}

func overlay(root string) error {
	options := layerOptions(root)
	merged := filepath.Join(root, "merged")
	// In a user namespace trusted.* attributes are refused, and containerd asks for
	// others where it can have them (plugins/snapshots/overlay, NeedsUserXAttr).
	if userns.Inside() && unix.Mount("overlay", merged, "overlay", 0, options+",userxattr") == nil {
		return useOverlay(merged)
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return useOverlay(merged)
}

func useOverlay(merged string) error {
	if err := os.Remove(filepath.Join(merged, "file")); err != nil {
		return fmt.Errorf("delete a file of the lower layer: %w", err)
	}
	if _, err := os.Stat(filepath.Join(merged, "file")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("a deleted file of the lower layer is still there: %v", err)
	}
	directory := filepath.Join(merged, "directory")
	if err := errors.Join(os.Remove(directory), os.Mkdir(directory, 0o755)); err != nil {
		return fmt.Errorf("replace a directory of the lower layer: %w", err)
	}
	if err := os.WriteFile(filepath.Join(directory, "new"), nil, 0o644); err != nil {
		return fmt.Errorf("write to an overlay: %w", err)
	}
	return nil
}

// FuseOverlay mounts with fuse-overlayfs below dir and looks in the mount table:
// the program also ends with success where the kernel has refused it.
func FuseOverlay(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error {
		if err := layers(root); err != nil {
			return err
		}
		return isolated(ctx, unix.CLONE_NEWNS, "fuse-overlay", root)
	})
}

func fuseOverlay(root string) error {
	options := layerOptions(root)
	merged := filepath.Join(root, "merged")
	output, err := exec.Command("fuse-overlayfs", "-o", options, merged).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fuse-overlayfs: %w: %s", err, strings.TrimSpace(string(output)))
	}
	mount, err := MountOf(merged)
	if err != nil {
		return err
	}
	if mount.Mountpoint != merged {
		return fmt.Errorf("fuse-overlayfs ended with success, and nothing is mounted: %s", reason(options, merged))
	}
	return useOverlay(merged)
}

// reason runs fuse-overlayfs in the foreground, where it says why it ends.
func reason(options, merged string) string {
	output, _ := exec.Command("timeout", "5", "fuse-overlayfs", "-f", "-o", options, merged).CombinedOutput()
	var lines []string
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, "fuse:") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "; ")
}

// TmpfsOptions mounts a tmpfs as runc does where it hides a directory of the kernel
// from a container: read-only, with one block and two inodes.
func TmpfsOptions(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error { return isolated(ctx, unix.CLONE_NEWNS, "tmpfs-options", root) })
}

func tmpfsOptions(root string) error {
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_RDONLY, "nr_blocks=1,nr_inodes=2"); err != nil {
		return fmt.Errorf("mount a tmpfs with nr_blocks=1,nr_inodes=2: %w", err)
	}
	return nil
}
