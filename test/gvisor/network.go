package gvisor

import (
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
const (
	Address        = "192.0.2.2" // of eth0 in the sandbox (RFC 5737)
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
	handles := make(map[string]netns.NsHandle)
	for _, name := range []string{"inside", "outside"} {
		if err := makeNamespace(namespace(dir, name)); err != nil {
			return err
		}
		handle, err := netns.GetFromPath(namespace(dir, name))
		if err != nil {
			return err
		}
		defer handle.Close()
		handles[name] = handle
	}
	outside, err := netlink.NewHandleAt(handles["outside"])
	if err != nil {
		return err
	}
	defer outside.Close()
	inside, err := netlink.NewHandleAt(handles["inside"])
	if err != nil {
		return err
	}
	defer inside.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "eth0"
	if err := outside.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(handles["inside"])}); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	for _, end := range []struct {
		handle  *netlink.Handle
		address string
	}{{outside, OutsideAddress}, {inside, Address}} {
		if err := configure(end.handle, end.address); err != nil {
			return err
		}
	}
	return inside.RouteAdd(&netlink.Route{Gw: net.ParseIP(OutsideAddress)})
}

func configure(handle *netlink.Handle, address string) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := handle.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address), Mask: net.CIDRMask(24, 32)}}
			if err := handle.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add %s to %s: %w", address, name, err)
			}
		}
		if err := handle.LinkSetUp(link); err != nil {
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
	return Within(s.namespace("outside"), f)
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
