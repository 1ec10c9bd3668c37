package probe

import (
	"context"
	"fmt"
	"strings"

	"k3s9p/internal/nat"
)

// MasqueradePods gives the kernel the rules for pods to leave by and sends a packet, in
// network namespaces of its own: that rules are taken does not mean that they work.
func MasqueradePods(ctx context.Context, backend nat.Backend) error {
	return inNetwork(ctx, "masquerade-pods", backend.String())
}

// ProxyPods is the same for the way that needs a proxy.
func ProxyPods(ctx context.Context, backend nat.Backend) error {
	return inNetwork(ctx, "proxy-pods", backend.String())
}

func backendOf(name string, try func(nat.Backend) error) error {
	ownLock()
	for _, backend := range nat.Backends() {
		if backend.String() == name {
			return try(backend)
		}
	}
	return fmt.Errorf("%w: there is no back end %q", ErrUnclear, name)
}

func oneLine(output []byte) string { return strings.Join(strings.Fields(string(output)), " ") }
