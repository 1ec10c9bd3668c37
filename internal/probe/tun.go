package probe

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"k3s9p/internal/userns"
)

// Tun makes a tun device in namespaces of a user namespace of its own.
func Tun(ctx context.Context) error {
	return inChild(ctx, userns.Start, "tun")
}

func tun() error {
	fd, err := OpenTun("k3s9p-tun")
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// OpenTun makes a tun device, without any header before its packets (kernel
// documentation, networking/tuntap), and returns its file, which does not block.
func OpenTun(name string) (int, error) {
	const clone = "/dev/net/tun"
	fd, err := unix.Open(clone, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", clone, err)
	}
	ifreq, err := unix.NewIfreq(name)
	if err == nil {
		ifreq.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifreq)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("make the tun device %s: %w", name, err), unix.Close(fd))
	}
	return fd, nil
}
