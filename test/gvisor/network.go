package gvisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The network of a sandbox is a namespace with one end of a veth pair, eth0; the
// other end is in a second namespace, the outside. Nothing of it touches the
// machine's own network. Each sandbox gets a pair of its own, because runsc takes
// the addresses off the device when it starts (gVisor runsc/sandbox/network.go).
//
// A sandbox beside another one has its other end in that one's outside, where a bridge
// connects both.
const (
	Address        = "192.0.2.2" // of eth0 in the sandbox (RFC 5737)
	BesideAddress  = "192.0.2.3" // of eth0 in one beside it
	OutsideAddress = "192.0.2.1"
)

func (s *Sandbox) namespace(name string) string { return namespace(s.dir, name) }

func namespace(dir, name string) string { return filepath.Join(dir, "netns", name) }

// Network makes such a network for a node on this machine itself, below a directory
// of the run, and returns the paths of both namespaces.
func Network(t *testing.T, dir string) (inside, outside string) {
	t.Helper()
	if err := makeNetwork(dir); err != nil {
		t.Fatal(err)
	}
	return namespace(dir, "inside"), namespace(dir, "outside")
}

// makeNetwork makes both namespaces as mounts below a directory.
func makeNetwork(dir string) error {
	outside := namespace(dir, "outside")
	if err := makeNamespace(outside); err != nil {
		return err
	}
	if err := plug(dir, outside, "eth0", Address); err != nil {
		return err
	}
	return Within(outside, func() error { return configure("eth0", OutsideAddress) })
}

// makeNetworkBeside makes a namespace on the network of another sandbox, given by its
// outside.
func makeNetworkBeside(dir, outside string) error {
	if err := plug(dir, outside, "eth1", BesideAddress); err != nil {
		return err
	}
	return Within(outside, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "lan"
		bridge := &netlink.Bridge{LinkAttrs: attributes}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		for _, name := range []string{"eth0", "eth1"} {
			port, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addresses, err := netlink.AddrList(port, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, address := range addresses {
				if err := netlink.AddrDel(port, &address); err != nil {
					return err
				}
			}
			if err := errors.Join(netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(port)); err != nil {
				return fmt.Errorf("connect %s to a bridge: %w", name, err)
			}
		}
		return configure("lan", OutsideAddress)
	})
}

// plug makes a namespace below a directory, with an end of a veth pair: eth0, with an
// address. The other end is in the outside, under the given name.
func plug(dir, outside, name, address string) error {
	path := namespace(dir, "inside")
	if err := makeNamespace(path); err != nil {
		return err
	}
	inside, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer inside.Close()
	err = Within(outside, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = name
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(inside)})
	})
	if err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	return Within(path, func() error {
		if err := configure("eth0", address); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(OutsideAddress)})
	})
}

// configure gives a device of this namespace an address, and sets it and loopback up.
func configure(device, address string) error {
	for _, name := range []string{"lo", device} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name == device {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(24, 32)}}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add %s to %s: %w", address, name, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// makeNamespace makes a network namespace that lives as long as it is mounted.
func makeNamespace(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a network namespace at %s: %w", path, err)
		}
		return nil
	})
}

// Outside calls f in the network namespace on the other end of eth0.
func (s *Sandbox) Outside(f func() error) error {
	return Within(s.outside, f)
}

// Within calls f in a network namespace.
func Within(path string, f func() error) error {
	return onThread(func() error {
		handle, err := netns.GetFromPath(path)
		if err != nil {
			return err
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it, and its namespaces with it.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}
