package bench

import (
	"context"
	"fmt"

	"k3s9p/internal/builder"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/scenario"
)

// What a node in namespaces of its own may cost, against a privileged one.
const (
	rootlessUpLimit       = 1.2
	rootlessDownloadLimit = 0.3
	rootlessLatencyLimit  = 3.0
	gatewayLimit          = 60 * (1 << 20) / 1e6 // MB, idle
	gatewayBusyLimit      = 120 * (1 << 20) / 1e6
)

// rootless measures a node in namespaces of its own against a privileged one.
func rootless(ctx context.Context, b *builder.Builder, gvisor string, times int) (figures []measurement, err error) {
	runs, all, err := inSandboxes[contract.RungResults](ctx, b, "TestRootless", gvisor, times)
	for i, results := range all {
		name := "gVisor " + scenario.GVisor(runs[i].Set) + ", without privileges: "
		r, p := results.Rootless, results.Privileged
		against := func(what, unit string, limit float64, least bool, r, p []float64) {
			figures = append(figures, measurement{name: name + what, value: median(r) / median(p), unit: "×", limit: limit, least: least,
				parts: fmt.Sprintf("%.3g %s, with them %.3g", median(r), unit, median(p))})
		}
		against("up, unpacked before", "s", rootlessUpLimit, false, r.Up, p.Up)
		against("50 MiB into a pod", "MB/s", rootlessDownloadLimit, true, r.Download, p.Download)
		against("50 MiB out of a pod", "MB/s", rootlessDownloadLimit, true, r.Upload, p.Upload)
		against("a request outside", "ms", rootlessLatencyLimit, false, r.Latency, p.Latency)
		figures = append(figures,
			measurement{name: name + "memory of the gateway", value: median(r.Gateway) / 1e6, unit: "MB", limit: gatewayLimit, parts: "RSS"},
			measurement{name: name + "the same with 1,000 connections", value: median(r.GatewayBusy) / 1e6, unit: "MB", limit: gatewayBusyLimit, parts: "RSS"})
	}
	return figures, err
}
