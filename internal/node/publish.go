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
	text string
	at   netip.AddrPort
	to   uint16 // a port of the node
}

// publications are those that were asked for.
func (o Options) publications() ([]publication, error) {
	var all []publication
	for _, text := range o.Publish {
		p, err := parsePublication(text)
		if err != nil {
			return nil, hint.Add(fmt.Errorf("--publish %s: %w", text, err), "--publish [ADDRESS:]PORT:NODEPORT, such as --publish 8080:30080")
		}
		if i := slices.IndexFunc(all, func(other publication) bool { return other.at == p.at }); i >= 0 {
			return nil, fmt.Errorf("--publish %s and --publish %s are the same port of this machine", all[i].text, text)
		}
		all = append(all, p)
	}
	return all, nil
}

func parsePublication(text string) (publication, error) {
	fields := strings.Split(text, ":")
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
	var ports [2]uint16
	for i, field := range fields[1:] {
		number, err := strconv.ParseUint(field, 10, 16)
		if err != nil || number == 0 {
			return publication{}, fmt.Errorf("%q is not a port", field)
		}
		ports[i] = uint16(number)
	}
	if ports[0] == ports[1] || ports[0] == port {
		return publication{}, fmt.Errorf("port %d is on this machine's network already", ports[0])
	}
	return publication{text, netip.AddrPortFrom(address, ports[0]), ports[1]}, nil
}

// publishServer lets the ports that were asked for be reached, and the apiserver outside
// of the node's own namespaces, if it is in such ones.
func (n *Node) publishServer(context.Context) error {
	options := svcproxy.Options{Log: n.log}
	if n.outside != nil {
		options.Listen = n.outside.Listen
	}
	n.published = svcproxy.NewTable(nil, options)
	var failures error
	for _, f := range n.publish(nil) {
		failures = errors.Join(failures, f)
	}
	return failures
}

// publish brings what is on this machine's network to what the cluster has now: the ports
// that were asked for and, of a node in namespaces of its own, the apiserver, node ports
// and hostPorts. What is sent by UDP stays inside.
func (n *Node) publish(ports []svcproxy.Port) []svcproxy.Failure {
	atNode := func(port uint16) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(n.cluster.Address(), port)}
	}
	var all []svcproxy.Port
	if n.outside != nil { // it has a control plane: such a node joins no other
		all = slices.DeleteFunc(slices.Clone(ports), func(p svcproxy.Port) bool { return len(p.Addresses) > 0 || p.Protocol != corev1.ProtocolTCP })
		all = append(all, svcproxy.Port{Name: "kube-apiserver", Protocol: corev1.ProtocolTCP, Port: port, Endpoints: atNode(port)})
	}
	publications, _ := n.options.publications() // they were checked
	for _, p := range publications {
		asked := svcproxy.Port{Name: "--publish " + p.text, Protocol: corev1.ProtocolTCP, Port: p.at.Port(), Endpoints: atNode(p.to)}
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
