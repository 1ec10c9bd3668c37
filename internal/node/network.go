package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridge makes what the plan has of the pod network, before any pod: the apiserver
// listens there.
func (n *Node) bridge(context.Context) error {
	j := n.paths.journal()
	if err := n.plan.Apply(j, func(id string) bool { return id == bridgeRecord }); err != nil {
		return err
	}
	if err := n.plan.Apply(j, func(id string) bool { return id == forwardRecord }); err != nil {
		n.log.Warn("packets of pods are not forwarded", "error", err)
	}
	return nil
}

// bridgeChange makes the device of the pod network.
type bridgeChange struct {
	Name string `json:"name"`

	cluster Cluster
	mtu     int
}

// addresses are the node's, and that of the DNS server.
func (c bridgeChange) addresses() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(c.cluster.Address(), c.cluster.PodCIDR().Bits()), netip.PrefixFrom(c.cluster.DNS(), 32)}
}

func (c bridgeChange) String() string {
	if !c.cluster.PodCIDR().IsValid() {
		return fmt.Sprintf("make the bridge %s with an address that the server gives, and %s", c.Name, c.cluster.DNS())
	}
	return fmt.Sprintf("make the bridge %s with %v", c.Name, c.addresses())
}

func (c bridgeChange) Make() error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = c.Name
	if c.mtu > 0 {
		attributes.MTU = c.mtu
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return err
	}
	link, err := netlink.LinkByName(c.Name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	for _, address := range c.addresses() {
		ip := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return fmt.Errorf("add %s to %s: %w", address, c.Name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", c.Name, err)
	}
	return nil
}

func (c bridgeChange) Undo(sameBoot bool) error {
	if !sameBoot {
		return nil
	}
	return removeBridge(c.Name)
}

// forwardChange lets the kernel pass packets on between pods and the world. The bridge
// plugin would do it as well, but would not take it back.
type forwardChange struct {
	Path   string `json:"path"`
	Before string `json:"before"` // empty where the kernel has no such parameter: it forwards, or cannot be told to
}

const forwardFile = "/proc/sys/net/ipv4/ip_forward"

// forwarding is the parameter as it is now.
func forwarding() forwardChange {
	before, _ := os.ReadFile(forwardFile)
	return forwardChange{forwardFile, strings.TrimSpace(string(before))}
}

func (c forwardChange) String() string {
	return fmt.Sprintf("write 1 to %s, which is %s", c.Path, c.Before)
}

func (c forwardChange) Make() error { return os.WriteFile(c.Path, []byte("1"), 0o644) }

func (c forwardChange) Undo(sameBoot bool) error {
	if !sameBoot || forwarding() == c { // it may have been refused
		return nil
	}
	return os.WriteFile(c.Path, []byte(c.Before), 0o644)
}

// forwardCover puts a file in the place of that parameter where a node in namespaces of
// its own may not write it: in gVisor it is that of the machine's own network
// (pkg/sentry/fsimpl/proc/tasks_sys.go).
type forwardCover struct{ file string }

func (c forwardCover) String() string { return fmt.Sprintf("mount a file with 1 at %s", forwardFile) }

func (c forwardCover) Make() error {
	if err := writeFile(c.file, []byte("1\n"), 0o644); err != nil {
		return err
	}
	return unix.Mount(c.file, forwardFile, "", unix.MS_BIND, "")
}

func removeBridge(name string) error {
	bridge, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the bridge %s: %w", name, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list the network devices: %w", err)
	}
	for _, link := range links {
		if link.Attrs().MasterIndex == bridge.Attrs().Index {
			_ = netlink.LinkDel(link) // it may go with the pod's namespace just now
		}
	}
	if err := netlink.LinkDel(bridge); err != nil {
		return fmt.Errorf("remove the bridge %s: %w", name, err)
	}
	return nil
}
