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

	"k3s9p/internal/hint"
)

// bridgeChange is the record of a bridge that was made.
type bridgeChange struct {
	Name string `json:"name"`
}

// forwardChange is the record of a kernel parameter.
type forwardChange struct {
	Path   string `json:"path"`
	Before string `json:"before"`
}

const forwardFile = "/proc/sys/net/ipv4/ip_forward"

// bridge makes the device of the pod network with the node's address, before any
// pod: the apiserver listens there. The address of the DNS server is added to it.
func (n *Node) bridge(context.Context) error {
	if _, err := netlink.LinkByName(Bridge); err == nil {
		return hint.Add(fmt.Errorf("there is a network device %s already, and it is not this node's", Bridge),
			"another cluster on this machine has made it: stop that, or ip link delete %s", Bridge)
	}
	if err := n.paths.journal().Record("bridge", bridgeChange{Bridge}); err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = Bridge
	if n.settings.Network.MTU > 0 {
		attributes.MTU = n.settings.Network.MTU
	}
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return fmt.Errorf("make the bridge %s: %w", Bridge, err)
	}
	link, err := netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("find the bridge %s: %w", Bridge, err)
	}
	pods := n.cluster.PodCIDR()
	for _, address := range []netip.Prefix{
		netip.PrefixFrom(n.cluster.Address(), pods.Bits()),
		netip.PrefixFrom(n.cluster.DNS(), 32),
	} {
		ip := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return fmt.Errorf("add %s to %s: %w", address, Bridge, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", Bridge, err)
	}
	return n.forward()
}

// forward lets the kernel pass packets on between pods and the world. The bridge
// plugin would do it as well, but would not take it back.
func (n *Node) forward() error {
	before, err := os.ReadFile(forwardFile)
	if err != nil || strings.TrimSpace(string(before)) == "1" {
		return nil // a kernel without the parameter forwards, or has no way to be told to
	}
	if err := n.paths.journal().Record("ip-forward", forwardChange{forwardFile, strings.TrimSpace(string(before))}); err != nil {
		return err
	}
	if err := os.WriteFile(forwardFile, []byte("1"), 0o644); err != nil {
		n.log.Warn("packets of pods are not forwarded", "error", err)
	}
	return nil
}

// removeNetwork takes the bridge and its ports away, and the parameter back.
func removeNetwork(p Paths) error {
	var failures error
	var bridge bridgeChange
	recorded, sameBoot, err := p.journal().Read("bridge", &bridge)
	if err == nil && recorded {
		if sameBoot {
			err = removeBridge(bridge.Name)
		}
		if err == nil {
			err = p.journal().Forget("bridge")
		}
	}
	failures = errors.Join(failures, err)
	var forward forwardChange
	recorded, sameBoot, err = p.journal().Read("ip-forward", &forward)
	if err == nil && recorded {
		if sameBoot {
			err = os.WriteFile(forward.Path, []byte(forward.Before), 0o644)
		}
		if err == nil {
			err = p.journal().Forget("ip-forward")
		}
	}
	return errors.Join(failures, err)
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
