package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// dnsUser is who the DNS server is to the apiserver; on a node that has joined it is the
// node itself.
const dnsUser = "k3s9p:coredns"

// corefile is the configuration of CoreDNS (its plugins kubernetes, forward, cache).
const corefile = `.:53 {
    bind %s
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . %s {
        max_concurrent 1000
    }
    cache 30
    loadbalance
}
`

// dnsEndpoint is where CoreDNS listens: at the address that pods are told, unless
// kube-proxy has that for a Service.
func (n *Node) dnsEndpoint() netip.Addr {
	if n.byKubeProxy() {
		return n.cluster.Address()
	}
	return n.cluster.DNS()
}

// dns starts CoreDNS as a process of the node.
func (n *Node) dns(context.Context) error {
	if !n.options.has(dnsAddOn) || n.cluster.Joined() && n.byKubeProxy() { // the one of the server is reached
		return nil
	}
	forward := n.upstream
	if forward == "" {
		forward = "127.0.0.1:9" // nobody: names outside of the cluster fail at once
	}
	conf := n.paths.conf("coredns")
	if n.cluster.Joined() {
		conf = n.paths.conf("kubelet")
	}
	file := n.paths.etc("Corefile")
	if err := writeFile(file, fmt.Appendf(nil, corefile, n.dnsEndpoint(), conf, forward), 0o644); err != nil {
		return err
	}
	return n.start(coredns, 10*time.Second, "-conf="+file)
}

// dnsAnswers asks the DNS server for the address of the apiserver's Service.
func (n *Node) dnsAnswers(ctx context.Context) error {
	server := net.JoinHostPort(n.cluster.DNS().String(), "53")
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	}}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	addresses, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	if err != nil {
		return fmt.Errorf("ask the DNS server at %s: %w", server, err)
	}
	if len(addresses) != 1 || addresses[0] != n.cluster.APIService().String() {
		return fmt.Errorf("the DNS server at %s says that the apiserver's Service has %v", server, addresses)
	}
	return nil
}
