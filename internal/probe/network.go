package probe

import (
	"context"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetwork runs a probe in a network namespace that has loopback only, and in a mount
// namespace, where the lock of iptables(8) is made and forgotten: see [ownLock].
func inNetwork(ctx context.Context, name string, args ...string) error {
	return isolated(ctx, unix.CLONE_NEWNET|unix.CLONE_NEWNS, name, args...)
}

// ownLock hides /run, so that no lock is left there that was not there before, and that
// of others is not waited for: it is for rules of another network namespace. gVisor does
// not lock /dev/null instead.
func ownLock() { _ = unix.Mount("tmpfs", "/run", "tmpfs", 0, "") }

// pair makes two connected veth devices and returns one.
func pair() (netlink.Link, error) {
	link, _, err := veth("k3s9p-a", "k3s9p-b")
	return link, err
}

// veth makes two connected veth devices. Of which Go type they are says nothing: a gVisor
// of January 2026 or before sends no kind (IFLA_INFO_KIND) of a link.
func veth(name, peerName string) (link, peer netlink.Link, err error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: peerName}); err != nil {
		return nil, nil, fmt.Errorf("make a veth pair: %w", err)
	}
	if link, err = netlink.LinkByName(name); err == nil {
		peer, err = netlink.LinkByName(peerName)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find a veth device: %w", err)
	}
	return link, peer, nil
}

// Bridge makes a bridge with a port: what a pod network needs at least.
func Bridge(ctx context.Context) error { return inNetwork(ctx, "bridge") }

func bridge() error {
	_, err := port()
	return err
}

// HairpinOption sets a bridge port's hairpin mode (IFLA_BRPORT_MODE).
func HairpinOption(ctx context.Context) error { return inNetwork(ctx, "hairpin") }

func hairpinOption() error {
	port, err := port()
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHairpin(port, false); err != nil {
		return fmt.Errorf("set hairpin mode of a bridge port: %w", err)
	}
	return nil
}

// LinkKind asks for the kind of a bridge (IFLA_INFO_KIND).
func LinkKind(ctx context.Context) error { return inNetwork(ctx, "link-kind") }

func linkKind() error {
	bridge, err := addBridge()
	if err != nil {
		return err
	}
	if kind := bridge.Type(); kind != "bridge" {
		return fmt.Errorf("the kind of a bridge is not sent: %q", kind)
	}
	return nil
}

func addBridge() (netlink.Link, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "k3s9p-br"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	bridge, err := netlink.LinkByName(attributes.Name)
	if err != nil {
		return nil, fmt.Errorf("find a bridge: %w", err)
	}
	return bridge, nil
}

// port makes a bridge and returns a port of it; both are up.
func port() (netlink.Link, error) {
	bridge, err := addBridge()
	if err != nil {
		return nil, err
	}
	port, err := pair()
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return nil, fmt.Errorf("add a port to a bridge: %w", err)
	}
	for _, link := range []netlink.Link{bridge, port} {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
		}
	}
	return port, nil
}

// PreferredSource adds a route with a source address (RTA_PREFSRC).
func PreferredSource(ctx context.Context) error { return inNetwork(ctx, "preferred-source") }

func preferredSource() error {
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
}
