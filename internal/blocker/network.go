package blocker

import (
	"context"
	"errors"
	"fmt"

	"k3s9p/internal/config"
	"k3s9p/internal/nat"
	"k3s9p/internal/probe"
)

var podNetwork = Blocker{
	ID:      "pod-network",
	Title:   "no bridge with veth devices",
	Symptom: "failed to create bridge",
	Source:  "containernetworking/plugins plugins/main/bridge; a gVisor of 2022 makes no devices, and root without CAP_NET_ADMIN may not",
	Remedy:  None,
	Action:  "give the container CAP_NET_ADMIN, or use a newer gVisor",
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		return seen(probe.Bridge(ctx), "a bridge and a port were made")
	},
}

var bridgePort = Blocker{
	ID:      "bridge-port",
	Title:   "bridge ports without options",
	Symptom: "failed to setup hairpin mode for…operation not supported",
	Source:  "containernetworking/plugins plugins/main/bridge; gVisor pkg/sentry/socket/netlink/route has no IFLA_BRPORT_* and no IFLA_OPERSTATE",
	Remedy:  Patch,
	Action:  "the bridge plugin here does without options that stay off",
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		if err := probe.Bridge(ctx); err != nil {
			return unclear(err)
		}
		return seen(probe.HairpinOption(ctx), "a bridge port took its hairpin mode")
	},
}

var linkKind = Blocker{
	ID:      "link-kind",
	Title:   "network devices without a kind",
	Symptom: "already exists but is not a bridge",
	Source:  "containernetworking/plugins plugins/main/bridge bridgeByName and pkg/ip; a gVisor of January 2026 or before sends no IFLA_INFO_KIND",
	Remedy:  Patch,
	Action:  "the plugins here take a device of unknown kind by its name",
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		return seen(probe.LinkKind(ctx), "the kind of a bridge is sent")
	},
}

var preferredSource = Blocker{
	ID:      "preferred-source",
	Title:   "routes without a source address",
	Symptom: "failed to add route…operation not supported",
	Source:  "containernetworking/plugins plugins/main/ptp; gVisor pkg/sentry/socket/netlink/route has no RTA_PREFSRC",
	Remedy:  Patch,
	Action:  "the ptp plugin here does without it",
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		return seen(probe.PreferredSource(ctx), "a route took a source address")
	},
}

var services = Blocker{
	ID:      "services",
	Title:   "no netfilter that kube-proxy could use",
	Symptom: "…not supported",
	Source:  "k8s.io/kubernetes pkg/proxy; gVisor pkg/sentry/socket/netfilter has legacy tables with a few matches, and no nf_tables that kube-proxy could use (gvisor#14637)",
	Remedy:  Setting,
	Default: "a proxy works everywhere",
	Check: func(ctx context.Context, h *Host) (Answer, string) {
		var refused error
		for _, mode := range []string{probe.KubeProxyNftables, probe.KubeProxyIptables} {
			err := probe.KubeProxy(ctx, mode)
			if err == nil {
				h.kubeProxy = mode
				return Fine, "a connection to a Service got to its endpoint, by rules of kube-proxy's mode " + mode
			}
			refused = errors.Join(refused, err)
		}
		return seen(refused, "")
	},
	Decide: func(_ context.Context, d *decision) {
		d.settings().Network.Services = config.ServiceProxy
		d.choose(Services, "a proxy in userspace: pods see the node's address instead of the client's")
	},
}

var bridged = Blocker{
	ID:      "bridged",
	Title:   "a bridge that takes packets between pods as its own",
	Symptom: "connection reset by peer",
	Source:  "gVisor pkg/tcpip/stack/bridge.go, DeliverNetworkPacket: what one port has got for another goes to the bridge's own network stack too, and that forwards it once more, so that each packet arrives twice",
	Remedy:  Setting,
	Check: func(ctx context.Context, _ *Host) (Answer, string) {
		if err := probe.Bridge(ctx); err != nil {
			return unclear(err)
		}
		return seen(probe.Bridged(ctx), "a frame from one port of a bridge to another went there only")
	},
	Decide: func(ctx context.Context, d *decision) {
		network := &d.settings().Network
		if network.Services != config.ServiceProxy {
			d.choose(Bridge, "packets between pods arrive twice, and some connections are reset: what kube-proxy sends to pods is forwarded from the bridge to itself")
			return
		}
		backend, err := firstBackend(ctx, func(ctx context.Context, b nat.Backend) error {
			if other := network.Egress.Backend; other != "" && other != b.String() {
				return fmt.Errorf("the rules for egress are those of %s", other)
			}
			return probe.DropBridged(ctx, b)
		})
		if err != nil {
			d.reason += "; " + oneLine(err)
			d.choose(Bridge, "packets between pods arrive twice, and some connections are reset")
			return
		}
		network.Bridged = backend.String()
		d.choose(Bridge, "nothing is forwarded from it to itself, by a rule of "+backend.String())
	},
}
