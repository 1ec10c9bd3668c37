package probe

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetwork calls f in a network namespace that has loopback only.
func inNetwork(f func() error) error { return isolated(unix.CLONE_NEWNET, f) }

// pair makes two connected veth devices.
func pair() (*netlink.Veth, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "k3s9p-a"
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: "k3s9p-b"}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make a veth pair: %w", err)
	}
	link, err := netlink.LinkByName(attributes.Name)
	if err != nil {
		return nil, fmt.Errorf("find a veth device: %w", err)
	}
	return link.(*netlink.Veth), nil
}

// Bridge makes a bridge with a port: what a pod network needs at least.
func Bridge() error { return withPort(func(netlink.Link) error { return nil }) }

// HairpinOption sets a bridge port's hairpin mode (IFLA_BRPORT_MODE).
func HairpinOption() error {
	return withPort(func(port netlink.Link) error {
		if err := netlink.LinkSetHairpin(port, false); err != nil {
			return fmt.Errorf("set hairpin mode of a bridge port: %w", err)
		}
		return nil
	})
}

// withPort calls f with a port of a bridge, both up.
func withPort(f func(port netlink.Link) error) error {
	return inNetwork(func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "k3s9p-br"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		bridge, err := netlink.LinkByName(attributes.Name)
		if err != nil {
			return fmt.Errorf("find a bridge: %w", err)
		}
		port, err := pair()
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(port, bridge); err != nil {
			return fmt.Errorf("add a port to a bridge: %w", err)
		}
		for _, link := range []netlink.Link{bridge, port} {
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
			}
		}
		return f(port)
	})
}

// PreferredSource adds a route with a source address (RTA_PREFSRC).
func PreferredSource() error {
	return inNetwork(func() error {
		veth, err := pair()
		if err != nil {
			return err
		}
		address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 2), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.AddrAdd(veth, address); err != nil {
			return fmt.Errorf("add an address: %w", err)
		}
		if err := netlink.LinkSetUp(veth); err != nil {
			return fmt.Errorf("set a veth device up: %w", err)
		}
		route := &netlink.Route{LinkIndex: veth.Attrs().Index, Src: address.IP, Dst: &net.IPNet{IP: net.IPv4(198, 51, 100, 0), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add a route with a source address: %w", err)
		}
		return nil
	})
}

// VXLAN makes a VXLAN device, which flannel's default backend needs.
func VXLAN() error {
	return inNetwork(func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "k3s9p-vx"
		if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attributes, VxlanId: 1, Port: 8472}); err != nil {
			return fmt.Errorf("make a VXLAN device: %w", err)
		}
		return nil
	})
}
