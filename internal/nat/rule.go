package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Chain is where in a packet's way a rule is asked.
type Chain uint8

const (
	Prerouting  Chain = iota + 1 // what arrives, before it is routed
	Output                       // what this machine's own processes send
	Postrouting                  // what leaves, after it was routed
	Forward                      // what is passed on, in the table filter; the others are in nat
)

var chainNames = map[Chain]string{Prerouting: "PREROUTING", Output: "OUTPUT", Postrouting: "POSTROUTING", Forward: "FORWARD"}

// tables are those with chains of ours, and these in the order in which they are written.
var tables = []struct {
	name   string
	chains []Chain
}{
	{"nat", []Chain{Prerouting, Output, Postrouting}},
	{"filter", []Chain{Forward}},
}

func (c Chain) String() string {
	if name, ok := chainNames[c]; ok {
		return name
	}
	return fmt.Sprintf("chain %d", uint8(c))
}

// Protocol is a transport protocol that a rule is limited to.
type Protocol uint8

const (
	AnyProtocol Protocol = 0
	TCP         Protocol = unix.IPPROTO_TCP
	UDP         Protocol = unix.IPPROTO_UDP
)

func (p Protocol) String() string {
	switch p {
	case AnyProtocol:
		return "all"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Rule says which packets get a Target. Zero fields match everything.
//
// Rules of one chain are asked in their order, and the first that matches decides.
// An exception, such as destinations that Redirect must not have, is a rule with
// the target [Return] in front: an entry of ip_tables has room for a single
// excluded destination.
type Rule struct {
	Chain Chain
	// In and Out are whole names of network interfaces: packets have an In in
	// Prerouting and Forward, and an Out in all chains but Prerouting.
	In, Out string
	// NotOut excludes an interface. There is no such field for In: gVisor takes one,
	// but does not show it again, so that it is lost when somebody else writes the
	// table (pkg/sentry/socket/netfilter/ipv4.go, getEntries4).
	NotOut              string
	Source, Destination netip.Prefix // IPv4
	Protocol            Protocol
	DestinationPort     uint16 // needs a Protocol
	Target              Target
}

// Target is what happens to the connection of a packet; make it with one of the
// functions.
type Target struct {
	kind    targetKind
	address netip.AddrPort
}

type targetKind uint8

const (
	snat targetKind = iota + 1
	dnat
	redirect
	masquerade
	giveBack
	drop
)

// SNAT gives the connection another source address. gVisor takes it only in a rule
// with a Protocol.
func SNAT(source netip.Addr) Target { return Target{snat, netip.AddrPortFrom(source, 0)} }

// DNAT sends the connection to another address and port. In Output gVisor of
// September 2026 takes it, but routes the packets as before, so that a destination
// behind another interface is not reached (gvisor#14626).
func DNAT(destination netip.AddrPort) Target { return Target{dnat, destination} }

// Redirect sends the connection to a port of this machine, where SO_ORIGINAL_DST
// tells the destination that it had.
func Redirect(port uint16) Target {
	return Target{redirect, netip.AddrPortFrom(netip.Addr{}, port)}
}

// Masquerade gives the connection the address of the interface that it leaves by.
// gVisor has no such target.
func Masquerade() Target { return Target{kind: masquerade} }

// Return leaves the connection to the rules of others: none of ours, here or
// further down the chain, touches it.
func Return() Target { return Target{kind: giveBack} }

// Drop forgets the packet. Only Forward takes it.
func Drop() Target { return Target{kind: drop} }

// String is the target in the words of iptables(8).
func (t Target) String() string {
	switch t.kind {
	case snat:
		return "SNAT --to-source " + t.address.Addr().String()
	case dnat:
		return "DNAT --to-destination " + t.address.String()
	case redirect:
		return fmt.Sprintf("REDIRECT --to-ports %d", t.address.Port())
	case masquerade:
		return "MASQUERADE"
	case giveBack:
		return "RETURN"
	case drop:
		return "DROP"
	}
	return "no target"
}

// String is the rule in the words of iptables(8).
func (r Rule) String() string {
	words := []string{"-A", r.Chain.String()}
	add := func(given bool, option string, value any) {
		if given {
			words = append(words, option, fmt.Sprint(value))
		}
	}
	add(r.In != "", "-i", r.In)
	add(r.Out != "", "-o", r.Out)
	add(r.NotOut != "", "! -o", r.NotOut)
	add(r.Source != netip.Prefix{}, "-s", r.Source)
	add(r.Destination != netip.Prefix{}, "-d", r.Destination)
	add(r.Protocol != AnyProtocol, "-p", r.Protocol)
	add(r.DestinationPort != 0, "--dport", r.DestinationPort)
	add(true, "-j", r.Target)
	return strings.Join(words, " ")
}

// check refuses what one of the kernels would refuse, or take and never match.
func (r Rule) check() error {
	if err := errors.Join(r.checkMatch(), r.checkTarget()); err != nil {
		return fmt.Errorf("nat: rule %s: %w", r, err)
	}
	return nil
}

func (r Rule) checkMatch() error {
	if _, ok := chainNames[r.Chain]; !ok {
		return errors.New("no such chain")
	}
	if r.In != "" && r.Chain != Prerouting && r.Chain != Forward {
		return errors.New("packets have an input interface in PREROUTING and FORWARD only")
	}
	if (r.Out != "" || r.NotOut != "") && r.Chain == Prerouting {
		return errors.New("packets have no output interface in PREROUTING yet")
	}
	if r.Out != "" && r.NotOut != "" {
		return errors.New("an output interface is both asked for and excluded")
	}
	for _, name := range []string{r.In, r.Out, r.NotOut} {
		// To gVisor a trailing + is a wildcard whatever the mask says
		// (pkg/tcpip/stack/iptables_types.go, matchIfName).
		if len(name) >= unix.IFNAMSIZ || strings.ContainsAny(name, "\x00/ ") || strings.HasSuffix(name, "+") {
			return fmt.Errorf("%q is not the name of an interface", name)
		}
	}
	for _, prefix := range []netip.Prefix{r.Source, r.Destination} {
		if (prefix != netip.Prefix{}) && !(prefix.IsValid() && prefix.Addr().Is4()) {
			return fmt.Errorf("%s is not an IPv4 prefix", prefix)
		}
	}
	if r.Protocol != AnyProtocol && r.Protocol != TCP && r.Protocol != UDP {
		return errors.New("the protocol is neither TCP nor UDP")
	}
	if r.DestinationPort != 0 && r.Protocol == AnyProtocol {
		return errors.New("a port needs a protocol")
	}
	return nil
}

func (r Rule) checkTarget() error {
	switch r.Target.kind {
	case snat, masquerade:
		if r.Chain != Postrouting {
			return errors.New("the source can be changed in POSTROUTING only")
		}
	case dnat, redirect:
		if r.Chain != Prerouting && r.Chain != Output {
			return errors.New("the destination can be changed in PREROUTING and OUTPUT only")
		}
		if r.Protocol == AnyProtocol {
			return errors.New("a new port needs a protocol")
		}
		if r.Target.address.Port() == 0 {
			return errors.New("the new port is 0")
		}
	case drop:
		if r.Chain != Forward {
			return errors.New("packets can be dropped in FORWARD only")
		}
	case giveBack:
	default:
		return errors.New("no target")
	}
	if address := r.Target.address.Addr(); (r.Target.kind == snat || r.Target.kind == dnat) && (!address.Is4() || address.IsUnspecified()) {
		return fmt.Errorf("%s is not an IPv4 address", address)
	}
	return nil
}

// byChain checks the rules and sorts them by their chains.
func byChain(rules []Rule) (map[Chain][]Rule, error) {
	sorted := make(map[Chain][]Rule)
	for _, rule := range rules {
		if err := rule.check(); err != nil {
			return nil, err
		}
		sorted[rule.Chain] = append(sorted[rule.Chain], rule)
	}
	return sorted, nil
}
