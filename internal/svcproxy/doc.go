// Package svcproxy forwards TCP connections and UDP datagrams in userspace, where
// the kernel's own forwarding is not to be had: gVisor drops forwarded TCP
// segments that are larger than the uplink's MTU (gvisor#14011) and has too little
// netfilter for kube-proxy.
//
// A listener asks its Destinations where a flow goes, dials that from the node,
// and copies. Egress is a listener that gets what pods send out of the cluster: TCP
// by a rule with target REDIRECT, and then it asks the kernel where that was going,
// and UDP by a raw socket. A hostPort is one with a fixed destination; a Service is
// one that knows endpoints. A Table keeps the listeners of all Services and
// hostPorts of a cluster.
//
// Do not use it where the kernel forwards and translates (any plain Linux): the
// destination sees the node's address instead of the client's, a refused port
// looks open before it is reset, and every byte is copied twice. It is no gateway
// either: what does not come by TCP or UDP does not pass.
//
// The code is our own because github.com/inetaf/tcpproxy knows neither original
// destinations nor UDP nor draining, and the forwarders of
// github.com/containers/gvisor-tap-vsock belong to a network stack of their own.
package svcproxy
