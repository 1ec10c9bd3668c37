package blocker

import (
	"context"
	"errors"

	"k3s9p/internal/config"
	"k3s9p/internal/nat"
	"k3s9p/internal/probe"
)

// jumbo is the MTU of the pod network where packets never leave it but by the
// proxy: gVisor drops segments that it has put together itself if they are larger
// than the MTU (gvisor#14011), so that with the default one pods exchange less
// than 1 MB/s.
const jumbo = 65535

var masquerade = Blocker{
	ID:      "masquerade",
	Title:   "no MASQUERADE",
	Symptom: "failed to locate iptables",
	Source:  "containernetworking/plugins pkg/ip/ipmasq_iptables_linux.go, which calls that program; gVisor pkg/sentry/socket/netfilter has neither the target MASQUERADE nor the match comment",
	Remedy:  Setting,
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		backend, err := firstBackend(ctx, probe.MasqueradePods)
		if err != nil {
			return seen(err, "")
		}
		h.backend = backend
		return Fine, "the kernel took a rule with MASQUERADE, by " + backend.String()
	},
	Default: "a proxy works everywhere",
	Decide: func(ctx context.Context, d *decision) {
		egress := &d.settings().Network.Egress
		backend, err := firstBackend(ctx, probe.ProxyPods)
		if err != nil {
			*egress = config.Egress{Way: config.NoEgress}
			d.reason += "; " + oneLine(err)
			d.choose(Egress, "none: pods reach nothing outside of the cluster")
			return
		}
		*egress = config.Egress{Way: config.Proxy, Backend: backend.String()}
		d.settings().Network.MTU = jumbo
		d.choose(Egress, "TCP by a proxy in userspace, UDP by "+d.datagrams(ctx, backend)+"; MTU 65535")
	},
}

// datagrams is what those of pods leave by: rules, unless the node is in a network
// namespace that does not forward. gVisor does so in its first one only: its
// /proc/sys/net/ipv4/ip_forward is that one's, wherever it is written.
func (d *decision) datagrams(ctx context.Context, backend nat.Backend) string {
	if !d.settings().UserNamespace {
		return backend.String()
	}
	if err := probe.RawUDP(ctx); err != nil {
		d.reason += "; " + oneLine(err)
		return backend.String() + " if this network namespace forwards it"
	}
	d.reason += "; a raw socket gets what pods send to the outside by UDP"
	d.settings().Network.Egress.RawUDP = true
	return "another, which has a raw socket"
}

// firstBackend is the first back end that takes the rules. The error says of each
// why not; that it could not be told of one is no answer for the others.
func firstBackend(ctx context.Context, take func(context.Context, nat.Backend) error) (nat.Backend, error) {
	var failures error
	for _, backend := range nat.Backends() {
		err := take(ctx, backend)
		if err == nil {
			return backend, nil
		}
		failures = errors.Join(failures, err)
	}
	return nil, failures
}
