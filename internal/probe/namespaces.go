package probe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"k3s9p/internal/userns"
)

// Privileges does what a node does in the machine's own namespaces, in a mount and a
// network namespace that belong to the same user namespace.
func Privileges(ctx context.Context) error {
	return isolated(ctx, unix.CLONE_NEWNS|unix.CLONE_NEWNET, "privileges")
}

// Namespaces does the same in namespaces of a user namespace of its own, where cgroups
// have to be mounted too. Where they cannot be, the error says what of a delegated cgroup
// is missing.
func Namespaces(ctx context.Context) error {
	if err := inChild(ctx, userns.Start, "privileges"); err != nil {
		return err
	}
	err := inChild(ctx, userns.Start, "own-cgroups")
	if err != nil {
		if _, missing := userns.Delegated(); missing != nil {
			return fmt.Errorf("%w: %w", err, missing)
		}
	}
	return err
}

// powers mounts something and makes a bridge.
func powers() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts in a namespace: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	return bridge()
}

// ownCgroups mounts a cgroup hierarchy, of either version, and makes a cgroup in it.
func ownCgroups() error {
	const point = "/dev"
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts in a namespace: %w", err)
	}
	unified := unix.Mount("cgroup2", point, "cgroup2", 0, "")
	if unified != nil {
		if err := unix.Mount("cgroup", point, "cgroup", 0, "memory"); err != nil {
			return fmt.Errorf("mount cgroups: version 2: %w; version 1: %w", unified, err)
		}
	}
	group := filepath.Join(point, fmt.Sprintf("k3s9p-probe-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	return os.Remove(group)
}
