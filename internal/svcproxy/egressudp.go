package svcproxy

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"k3s9p/internal/rawudp"
)

// Within says what of the datagrams that a raw socket gets is not egress: the kernel has
// done with that what there was to do.
type Within struct {
	// Pods are those whose datagrams are served.
	Pods netip.Prefix
	// Cluster is where nothing is sent to.
	Cluster []netip.Prefix
}

// ListenEgressUDP serves what pods send out of the cluster, where the kernel drops that
// and gives it to a raw socket before (package rawudp). It arrives by the device, and
// answers come from where it was going. A datagram of more than rawudp.MaxSize is lost.
func ListenEgressUDP(device string, within Within, policy Policy, options Options) (*UDP, error) {
	conn, err := rawudp.Listen(device)
	if err != nil {
		return nil, err
	}
	options = options.withDefaults()
	options.Log = options.Log.With("device", device)
	p := &UDP{conn: &rawDatagrams{Conn: conn, within: within}, options: options, destination: func(flow Flow) (netip.AddrPort, error) {
		return flow.Local, policy.check(flow.Local.Addr())
	}}
	p.start()
	return p, nil
}

// rawDatagrams has what pods send out of the cluster.
type rawDatagrams struct {
	*rawudp.Conn
	within Within

	own      []net.Addr // of the node, as of some time before fresh
	outdated time.Time
}

func (d *rawDatagrams) read() ([]byte, Flow, error) {
	for {
		datagram, from, to, err := d.Read()
		if err != nil || d.leaves(from.Addr(), to.Addr()) {
			return datagram, Flow{Client: from, Local: to}, err
		}
	}
}

func (d *rawDatagrams) answer(datagram []byte, to Flow) error {
	return d.Write(datagram, to.Local, to.Client)
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// leaves reports whether a datagram is one out of the cluster.
func (d *rawDatagrams) leaves(from, to netip.Addr) bool {
	inCluster := slices.ContainsFunc(d.within.Cluster, func(p netip.Prefix) bool { return p.Contains(to) })
	return d.within.Pods.Contains(from) && !inCluster && !to.IsMulticast() && to != broadcast && !d.isOwn(to)
}

// isOwn reports whether an address is one of the node's, such as the external IP of a
// Service. One that is new is known after a second.
func (d *rawDatagrams) isOwn(address netip.Addr) bool {
	if now := time.Now(); now.After(d.outdated) {
		if all, err := net.InterfaceAddrs(); err == nil {
			d.own = all
		}
		d.outdated = now.Add(time.Second)
	}
	return isAmong(d.own, address)
}
