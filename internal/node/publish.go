package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/hint"
	"k3s9p/internal/svcproxy"
)

// publication is a further port of this machine that leads to one of the node's.
type publication struct {
	text     string
	protocol corev1.Protocol
	at       netip.AddrPort
	to       uint16 // a port of the node
}

// publications are those that were asked for.
func (o Options) publications() ([]publication, error) {
	var all []publication
	for _, text := range o.Publish {
		p, err := parsePublication(text)
		if err != nil {
			return nil, hint.Add(fmt.Errorf("--publish %s: %w", text, err), "--publish [ADDRESS:]PORT:NODEPORT[/udp], such as --publish 8080:30080")
		}
		if i := slices.IndexFunc(all, func(other publication) bool { return other.at == p.at && other.protocol == p.protocol }); i >= 0 {
			return nil, fmt.Errorf("--publish %s and --publish %s are the same port of this machine", all[i].text, text)
		}
		all = append(all, p)
	}
	return all, nil
}

func parsePublication(text string) (publication, error) {
	ports, name, given := strings.Cut(text, "/")
	protocol := corev1.Protocol(strings.ToUpper(name))
	if !given {
		protocol = corev1.ProtocolTCP
	}
	if protocol != corev1.ProtocolTCP && protocol != corev1.ProtocolUDP {
		return publication{}, fmt.Errorf("the protocol %q is neither tcp nor udp", name)
	}
	fields := strings.Split(ports, ":")
	if len(fields) == 2 {
		fields = append([]string{"0.0.0.0"}, fields...)
	}
	if len(fields) != 3 {
		return publication{}, errors.New("it is not two ports")
	}
	address, err := netip.ParseAddr(fields[0])
	if err != nil || !address.Is4() {
		return publication{}, fmt.Errorf("%q is not an IPv4 address", fields[0])
	}
	var numbers [2]uint16
	for i, field := range fields[1:] {
		number, err := strconv.ParseUint(field, 10, 16)
		if err != nil || number == 0 {
			return publication{}, fmt.Errorf("%q is not a port", field)
		}
		numbers[i] = uint16(number)
	}
	if numbers[0] == numbers[1] || (numbers[0] == port && protocol == corev1.ProtocolTCP) {
		return publication{}, fmt.Errorf("port %d is on this machine's network already", numbers[0])
	}
	return publication{text, protocol, netip.AddrPortFrom(address, numbers[0]), numbers[1]}, nil
}

// publishServer lets the ports that were asked for be reached, and the apiserver outside
// of the node's own namespaces, if it is in such ones.
func (n *Node) publishServer(context.Context) error {
	options, local := svcproxy.Options{Log: n.log}, n.addresses
	if n.outside != nil {
		options.Listen, options.ListenPacket, local = n.outside.Listen, n.outside.ListenPacket, n.outsideAddresses
	}
	n.published = svcproxy.NewTable(local, options)
	var failures error
	for _, f := range n.publish(nil) {
		failures = errors.Join(failures, f)
	}
	return failures
}

// outsideAddresses are those of this machine's network.
func (n *Node) outsideAddresses() []netip.Addr {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addresses, err := n.outside.Addresses(ctx)
	if err != nil {
		n.log.Warn("the addresses of this machine are not known: no UDP port is published", "error", err)
	}
	return addresses
}

// publish brings what is on this machine's network to what the cluster has now: the ports
// that were asked for and, of a node in namespaces of its own, the apiserver, node ports
// and hostPorts.
func (n *Node) publish(ports []svcproxy.Port) []svcproxy.Failure {
	atNode := func(port uint16) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(n.cluster.Address(), port)}
	}
	var all []svcproxy.Port
	if n.outside != nil { // it has a control plane: such a node joins no other
		all = slices.DeleteFunc(slices.Clone(ports), func(p svcproxy.Port) bool { return len(p.Addresses) > 0 })
		all = append(all, svcproxy.Port{Name: "kube-apiserver", Protocol: corev1.ProtocolTCP, Port: port, Endpoints: atNode(port)})
	}
	publications, _ := n.options.publications() // they were checked
	for _, p := range publications {
		asked := svcproxy.Port{Name: "--publish " + p.text, Protocol: p.protocol, Port: p.at.Port(), Endpoints: atNode(p.to)}
		if !p.at.Addr().IsUnspecified() {
			asked.Addresses = []netip.Addr{p.at.Addr()}
		}
		all = append(all, asked)
	}
	return n.published.Apply(all)
}

// closePublished ends these listeners; connections that are open get a moment.
func (n *Node) closePublished() {
	if n.published == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.published.Close(ctx); err != nil {
		n.log.Info("connections from outside were cut", "error", err)
	}
}
