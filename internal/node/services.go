package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"k3s9p/internal/svcproxy"
)

// What the ports of the cluster are made of.
const (
	servicesPath = "/api/v1/services"
	slicesPath   = "/apis/discovery.k8s.io/v1/endpointslices"
)

// podsPath are the pods of this node.
func (n *Node) podsPath() string {
	return "/api/v1/pods?fieldSelector=" + url.QueryEscape("spec.nodeName="+n.cluster.NodeName)
}

// services serves Services and hostPorts in userspace. The addresses of Services
// are on the bridge, which goes with the node.
type services struct {
	table *svcproxy.Table
	mu    sync.Mutex
	added map[netip.Addr]bool // addresses that are on the bridge for Services
	// reported are the ports that could not be opened, and why.
	reported map[string]string
}

// openServices brings the ports to what the cluster has now. The Service of the
// apiserver has to be among them: at a first start it makes that a moment after it
// says that it is ready.
func (n *Node) openServices(ctx context.Context) error {
	if !n.options.has(servicesAddOn) {
		return nil
	}
	n.services = &services{added: make(map[netip.Addr]bool)}
	n.services.table = svcproxy.NewTable(n.addresses, svcproxy.Options{Log: n.log})
	if n.byKubeProxy() {
		return n.kubeProxyServes(ctx)
	}
	return n.supervisor.Await(ctx, func(ctx context.Context) error {
		err := n.readServices(ctx)
		if n.services.table.Len() == 0 {
			return errors.Join(errors.New("the Service of the apiserver is not served"), err)
		}
		return nil
	}, n.distribution().server...)
}

// followServices keeps the ports as the cluster has them, until ctx ends.
func (n *Node) followServices(ctx context.Context) {
	all := mirror[corev1.Service, *corev1.Service]{client: n.client, path: servicesPath}
	endpointSlices := mirror[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]{client: n.client, path: slicesPath}
	pods := mirror[corev1.Pod, *corev1.Pod]{client: n.client, path: n.podsPath()}
	n.followBy(ctx, []follower{all.follow, endpointSlices.follow, pods.follow}, func() error {
		all, haveAll := all.list()
		endpointSlices, haveSlices := endpointSlices.list()
		pods, havePods := pods.list()
		if !haveAll || !haveSlices || !havePods {
			return nil // the last of them is still read
		}
		return n.serve(ctx, all, endpointSlices, pods)
	})
}

// follower calls changed when something has changed, until ctx ends.
type follower func(ctx context.Context, changed func())

// follow calls sync when something in one of the collections has changed: see followBy.
func (n *Node) follow(ctx context.Context, collections []string, sync func() error) {
	var all []follower
	for _, path := range collections {
		all = append(all, func(ctx context.Context, changed func()) { n.client.watch(ctx, path, changed) })
	}
	n.followBy(ctx, all, sync)
}

// followBy calls sync when one of the followers says that something has changed, and every
// 30 s in any case, until ctx ends. An error is logged once.
func (n *Node) followBy(ctx context.Context, followers []follower, sync func() error) {
	changed := make(chan struct{}, 1)
	for _, follow := range followers {
		go follow(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}
	again := time.NewTicker(30 * time.Second) // what failed may work by now
	defer again.Stop()
	problem := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again.C:
		}
		text := ""
		if err := sync(); err != nil && ctx.Err() == nil {
			if text = err.Error(); text != problem {
				n.log.Warn("the node does not follow the cluster in all", "error", err)
			}
		}
		problem = text
		select { // what changes together is done together
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// readServices reads the cluster and changes the listeners.
func (n *Node) readServices(ctx context.Context) error {
	var all corev1.ServiceList
	var endpointSlices discoveryv1.EndpointSliceList
	var pods corev1.PodList
	for path, list := range map[string]any{servicesPath: &all, slicesPath: &endpointSlices, n.podsPath(): &pods} {
		if err := n.client.get(ctx, path, list); err != nil {
			return err
		}
	}
	return n.serve(ctx, all.Items, endpointSlices.Items, pods.Items)
}

// serve brings the listeners to what the cluster has.
func (n *Node) serve(ctx context.Context, all []corev1.Service, endpointSlices []discoveryv1.EndpointSlice, pods []corev1.Pod) error {
	ports := svcproxy.PortsOf(all, endpointSlices, n.cluster.NodeName)
	atNode := svcproxy.HostPortsOf(pods)
	if n.byKubeProxy() {
		n.reportPorts(ctx, slices.Concat(n.services.table.Apply(atNode), n.publish(slices.Concat(ports, atNode))))
		return nil
	}
	if n.options.has(dnsAddOn) { // CoreDNS listens at its own address
		ports = slices.DeleteFunc(ports, func(p svcproxy.Port) bool { return slices.Contains(p.Addresses, n.cluster.DNS()) })
	}
	addresses := make(map[netip.Addr]bool)
	for _, port := range ports {
		for _, address := range port.Addresses {
			addresses[address] = true
		}
	}
	addErr := n.services.add(addresses)
	ports = append(ports, atNode...)
	n.reportPorts(ctx, slices.Concat(n.services.table.Apply(ports), n.publish(ports)))
	return errors.Join(addErr, n.services.remove(addresses))
}

// reportPorts tells the owners of ports that could not be opened who holds them, once
// for each reason.
func (n *Node) reportPorts(ctx context.Context, failures []svcproxy.Failure) {
	now := make(map[string]string)
	for _, f := range failures {
		reason := inUse(strings.ToLower(string(f.Port.Protocol)), int(f.At.Port()), f.Err).Error()
		key := f.Port.Name + " " + f.At.String()
		if now[key] = reason; n.services.reported[key] == reason {
			continue
		}
		n.log.Warn("a port is not served", "port", f.Port.Name, "protocol", f.Port.Protocol, "at", f.At, "reason", reason)
		n.warn(ctx, f.Port.Owner, "PortNotServed", fmt.Sprintf("%s port %d is not served at %v: %s", f.Port.Protocol, f.At.Port(), f.At.Addr(), reason))
	}
	n.services.reported = now
}

// add puts addresses on the bridge, so that what is sent to them arrives here.
func (s *services) add(addresses map[netip.Addr]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var own []netip.Addr
	var failures error
	for address := range addresses {
		if s.added[address] {
			continue
		}
		if own == nil {
			own = localAddresses()
		}
		if slices.Contains(own, address) {
			continue
		}
		if err := changeAddress(address, netlink.AddrAdd); err != nil {
			failures = errors.Join(failures, fmt.Errorf("add the address %s of a Service to %s: %w", address, Bridge, err))
			continue
		}
		s.added[address] = true
	}
	return failures
}

// remove takes those away again that no Service has any more.
func (s *services) remove(wanted map[netip.Addr]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var failures error
	for address := range maps.Clone(s.added) {
		if wanted[address] {
			continue
		}
		if err := changeAddress(address, netlink.AddrDel); err != nil {
			failures = errors.Join(failures, fmt.Errorf("remove the address %s from %s: %w", address, Bridge, err))
			continue
		}
		delete(s.added, address)
	}
	return failures
}

func changeAddress(address netip.Addr, change func(netlink.Link, *netlink.Addr) error) error {
	link, err := netlink.LinkByName(Bridge)
	if err != nil {
		return err
	}
	return change(link, &netlink.Addr{IPNet: netlink.NewIPNet(address.AsSlice())})
}

// addresses are those of the node: not those that Services have here, which others may
// listen at.
func (n *Node) addresses() []netip.Addr {
	return slices.DeleteFunc(localAddresses(), func(a netip.Addr) bool { return a == n.cluster.DNS() || n.services.has(a) })
}

// has reports whether a Service has the address.
func (s *services) has(address netip.Addr) bool {
	if s == nil { // they are not opened yet
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.added[address]
}

// localAddresses are the IPv4 addresses of the network that this process is in.
func localAddresses() []netip.Addr {
	list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var addresses []netip.Addr
	for _, a := range list {
		if address, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// closeServices ends the listeners; connections that are open get a moment.
func (n *Node) closeServices() {
	if n.services == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.services.table.Close(ctx); err != nil {
		n.log.Info("connections to Services were cut", "error", err)
	}
}
