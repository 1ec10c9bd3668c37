package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

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
	return fromTable(func(table io.Reader) (*mountinfo.Info, error) { return mountOf(table, path) })
}

// fromTable gives the mount table of this process to a parser.
func fromTable[T any](parse func(io.Reader) (T, error)) (T, error) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		var none T
		return none, err
	}
	defer table.Close()
	return parse(table)
}

func mountOf(table io.Reader, path string) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMountsFromReader(table, mountinfo.ParentsFilter(path))
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

// IsRoot reports whether it is the mount at /.
func (u Unsharing) IsRoot() bool { return u.Mountpoint == "/" }

// Unshared returns the mounts whose optional fields in /proc/self/mountinfo have
// no "shared:".
func Unshared() ([]Unsharing, error) { return fromTable(unshared) }

func unshared(table io.Reader) ([]Unsharing, error) {
	mounts, err := mountinfo.GetMountsFromReader(table, nil)
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

// scratch is how the directories are called that probes make and remove; then comes
// the id of the process that will remove it.
const scratch = ".probe-"

// withScratch calls f with a new directory below dir. It is made and removed here
// and not in the child, which may be killed.
func withScratch(dir string, f func(root string) error) error {
	Sweep(dir)
	root, err := os.MkdirTemp(dir, fmt.Sprintf("%s%d-", scratch, os.Getpid()))
	if err != nil {
		return fmt.Errorf("%w: make a directory for a probe: %w", ErrUnclear, err)
	}
	defer rmtree.Tree(root)
	return f(root)
}

// Sweep removes the directories that probes have made in dir, and the cgroups, whose
// process was killed before it could.
func Sweep(dir string) {
	for _, name := range abandoned(filepath.Join(dir, scratch)) {
		_ = rmtree.Tree(name)
	}
	for _, hierarchy := range []string{CgroupRoot, filepath.Join(CgroupRoot, "memory")} {
		for _, name := range abandoned(filepath.Join(hierarchy, cgroupPrefix)) {
			removeCgroup(name)
		}
	}
}

// abandoned lists what begins with the prefix and the id of a process that has ended.
func abandoned(prefix string) []string {
	var names []string
	found, _ := filepath.Glob(prefix + "*")
	for _, name := range found {
		text, _, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
		pid, err := strconv.Atoi(text)
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			names = append(names, name)
		}
	}
	return names
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
	if err := directoryTypes(filepath.Join(root, "upper")); err != nil {
		return err
	}
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

// directoryTypes looks whether a directory tells the types of its files (d_type,
// readdir(3)), without which an upper layer shows its whiteouts (kernel documentation,
// filesystems/overlayfs).
func directoryTypes(dir string) error {
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	defer os.Remove(name)
	file, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	defer file.Close()
	buffer := make([]byte, 4096)
	n, err := unix.Getdents(int(file.Fd()), buffer)
	if err != nil {
		return fmt.Errorf("%w: list %s: %w", ErrUnclear, dir, err)
	}
	for buffer = buffer[:n]; len(buffer) > 0; {
		entry := (*unix.Dirent)(unsafe.Pointer(&buffer[0]))
		if entry.Type == unix.DT_UNKNOWN {
			return errors.New("directories do not tell the types of their files (d_type)")
		}
		buffer = buffer[entry.Reclen:]
	}
	return nil
}

// SharedMemory writes to a file by a shared mapping, as bbolt and SQLite do
// (mmap(2)), and reads it back.
func SharedMemory(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error { return isolated(ctx, 0, "shared-memory", root) })
}

func sharedMemory(root string) error {
	file, err := os.Create(filepath.Join(root, "file"))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	defer file.Close()
	size := os.Getpagesize()
	if err := file.Truncate(int64(size)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	memory, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map a file into memory, shared: %w", err)
	}
	memory[0] = 1
	if err := unix.Msync(memory, unix.MS_SYNC); err != nil {
		return fmt.Errorf("write a shared mapping to its file: %w", err)
	}
	read := make([]byte, 1)
	if _, err := file.ReadAt(read, 0); err != nil || read[0] != 1 {
		return fmt.Errorf("what is written to a shared mapping is not in the file: %v, %v", read, err)
	}
	return nil
}

// Socket makes a Unix socket below dir and connects to it.
func Socket(ctx context.Context, dir string) error {
	return withScratch(dir, func(root string) error { return isolated(ctx, 0, "socket", root) })
}

func socket(root string) error {
	// A path relative to the directory, because an address has room for 107 bytes.
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("%w: %w", ErrUnclear, err)
	}
	listener, err := net.Listen("unix", "socket")
	if err != nil {
		return fmt.Errorf("make a Unix socket: %w", err)
	}
	defer listener.Close()
	conn, err := net.Dial("unix", "socket")
	if err != nil {
		return fmt.Errorf("connect to a Unix socket: %w", err)
	}
	return conn.Close()
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
