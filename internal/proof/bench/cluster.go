package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"k3s9p/internal/builder"
	"k3s9p/internal/hint"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/scenario"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// measuring is the directory of test/ that measures a cluster. It is none of
// scenario.All: it protects nothing.
const measuring = "bench"

// What a cluster may cost.
const (
	upUnpackingLimit = 14.0 // seconds
	upNewLimit       = 9.0
	upNewRatioLimit  = 1.5 // gVisor against natively
	upStoppedLimit   = 8.0
	downLimit        = 5.0
	podRatioLimit    = 0.3 // a pod's network against the node's own
	betweenPodsLimit = 50  // MB/s
	rssLimit         = 1024 * (1 << 20) / 1e6
	kubeletLimit     = 3.0 // seconds
	// By a Service against the pod's own address.
	serviceRateLimit     = 0.6
	serviceDownloadLimit = 0.5
	serviceP99Limit      = 2.0
	serviceUDPLimit      = 0.4
	machineLimit         = 350 // MB
	launcherLimit        = 130
)

// cluster measures clusters in each gVisor and natively, in turn.
func cluster(ctx context.Context, b *builder.Builder, gvisor string, times int) ([]measurement, error) {
	runs, all, err := inSandboxes[contract.Results](ctx, b, "TestCluster", gvisor, times)
	if err != nil {
		return nil, err
	}
	launcher, err := os.Stat(b.Dist(builder.LauncherName))
	if err != nil {
		return nil, err
	}
	var names []string
	native := contract.Figures{Components: all[0].Native.Components}
	var figures []measurement
	for i, run := range runs {
		name := "gVisor " + scenario.GVisor(run.Set)
		names = append(names, name)
		figures = append(figures, inGVisor(name, all[i])...)
		native.UpStopped = append(native.UpStopped, all[i].Native.UpStopped...)
		native.Down = append(native.Down, all[i].Native.Down...)
	}
	figures = append(figures, onBoth("natively", native)...)
	figures = append(figures, measurement{name: "dist/" + builder.LauncherName, value: megabytes(launcher.Size()), unit: "MB", limit: launcherLimit})
	b.UI.Say("memory of the idle node by component:\n%s", components(names, all))
	return figures, nil
}

// inSandboxes runs a test that measures in one gVisor, or in each, and returns what it
// has measured there.
func inSandboxes[R any](ctx context.Context, b *builder.Builder, test, gvisor string, times int) (runs []scenario.Run, all []R, err error) {
	if why := scenario.Preflight(); why != nil {
		return nil, nil, fmt.Errorf("the benchmark starts sandboxes: %w", why)
	}
	sets, err := scenario.Sets(b.Root, gvisor)
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "k3s9p-bench-")
	if err != nil {
		return nil, nil, err
	}
	defer rmtree.Tree(dir)
	for _, set := range sets {
		runs = append(runs, scenario.Run{Scenario: measuring, Set: set, Tests: "^" + test + "$", Bench: contract.Bench{Results: filepath.Join(dir, set+".json"), Rounds: times}})
	}
	err = scenario.With(ctx, b, runs, func(s *scenario.Session) error {
		for _, run := range runs {
			results, err := measure[R](ctx, b, s, run)
			if err != nil {
				return err
			}
			all = append(all, results)
		}
		return nil
	})
	return runs, all, err
}

// measure measures in one gVisor.
func measure[R any](ctx context.Context, b *builder.Builder, s *scenario.Session, run scenario.Run) (results R, err error) {
	ok, err := s.Run(ctx, run)
	if err == nil && !ok {
		err = hint.Add(errors.New("the benchmark in gVisor failed"), "what it printed is in %s", b.Dist("reports", "sandbox-"+run.String()+".log"))
	}
	if err != nil {
		return results, err
	}
	data, err := os.ReadFile(run.Bench.Results)
	if err == nil {
		err = json.Unmarshal(data, &results)
	}
	if err != nil {
		return results, fmt.Errorf("read what the benchmark has measured: %w", err)
	}
	return results, workdir.WriteFile(b.Dist("reports", run.String()+".json"), data)
}

// inGVisor are the figures of a cluster in one gVisor.
func inGVisor(name string, r contract.Results) []measurement {
	f := r.GVisor
	up, native := median(f.UpNew), median(r.Native.UpNew)
	figures := []measurement{
		{name: name + ": up, with unpacking", value: median(f.UpUnpacking), unit: "s", limit: upUnpackingLimit,
			parts: fmt.Sprintf("natively %.1f s", median(r.Native.UpUnpacking))},
		{name: name + ": up, unpacked before", value: up, unit: "s", limit: upNewLimit},
		{name: name + ": up, unpacked before, against natively", value: up / native, unit: "×", limit: upNewRatioLimit,
			parts: fmt.Sprintf("%.1f s, natively %.1f s", up, native)},
		{name: name + ": kubelet, from its start until it is healthy", value: median(f.KubeletHealthy), unit: "s", limit: kubeletLimit,
			parts: fmt.Sprintf("natively %.2f s", median(r.Native.KubeletHealthy))},
	}
	figures = append(figures, onBoth(name, f)...)
	for _, way := range []struct {
		name                 string
		pod, node            []float64
		nativePod, nativeNod []float64
	}{
		{"into a pod", f.PodDownload, f.NodeDownload, r.Native.PodDownload, r.Native.NodeDownload},
		{"out of a pod", f.PodUpload, f.NodeUpload, r.Native.PodUpload, r.Native.NodeUpload},
	} {
		figures = append(figures, measurement{
			name: name + ": 50 MiB " + way.name + ", against the node's own", value: median(way.pod) / median(way.node), unit: "×", limit: podRatioLimit, least: true,
			parts: fmt.Sprintf("pod %.0f MB/s, node %.0f MB/s; natively %.0f and %.0f", median(way.pod), median(way.node), median(way.nativePod), median(way.nativeNod)),
		})
	}
	figures = append(figures, byService(name, f, r.Native)...)
	before, idle := f.Machine.Before, f.Machine.Idle
	return append(figures,
		measurement{name: name + ": 50 MiB between pods", value: median(f.BetweenPods), unit: "MB/s", limit: betweenPodsLimit, least: true,
			parts: fmt.Sprintf("natively %.0f MB/s", median(r.Native.BetweenPods))},
		measurement{name: name + ": memory of the idle node, the host's", value: megabytes(idle.Own - before.Own), unit: "MB", limit: machineLimit,
			parts: fmt.Sprintf("before up %.0f MB; and %.0f MB of page cache of mapped files, before %.0f MB", megabytes(before.Own), megabytes(idle.Files), megabytes(before.Files))})
}

// byService are what a Service costs in one gVisor, from a pod to another one.
func byService(name string, f, native contract.Figures) (figures []measurement) {
	for _, kind := range []struct {
		name, unit string
		limit      float64
		least      bool
		of         func(contract.Asked) []float64
	}{
		{"requests by a Service, against the pod itself", "/s", serviceRateLimit, true, func(a contract.Asked) []float64 { return a.Rate }},
		{"99 of 100 requests by a Service, against the pod itself", "ms", serviceP99Limit, false, func(a contract.Asked) []float64 { return a.P99 }},
		{"50 MiB by a Service, against the pod itself", "MB/s", serviceDownloadLimit, true, func(a contract.Asked) []float64 { return a.Download }},
		{"datagrams by a Service, against the pod itself", "/s", serviceUDPLimit, true, func(a contract.Asked) []float64 { return a.UDP }},
	} {
		service, pod := median(kind.of(f.Service)), median(kind.of(f.Pod))
		figures = append(figures, measurement{name: name + ": " + kind.name, value: service / pod, unit: "×", limit: kind.limit, least: kind.least,
			parts: fmt.Sprintf("%.4g and %.4g %s; natively, by kube-proxy, %.4g and %.4g", service, pod, kind.unit, median(kind.of(native.Service)), median(kind.of(native.Pod)))})
	}
	return figures
}

// onBoth are the figures that have the same limit everywhere.
func onBoth(name string, f contract.Figures) []measurement {
	rss, pss := total(f)
	parts := "RSS; there is no PSS"
	if pss > 0 {
		parts = fmt.Sprintf("RSS; PSS %.0f MB", megabytes(pss))
	}
	return []measurement{
		{name: name + ": up of a stopped cluster", value: median(f.UpStopped), unit: "s", limit: upStoppedLimit},
		{name: name + ": down", value: median(f.Down), unit: "s", limit: downLimit,
			parts: fmt.Sprintf("the slowest of %d %.1f s", len(f.Down), slices.Max(f.Down))},
		{name: name + ": memory of the idle node, in all", value: megabytes(rss), unit: "MB", limit: rssLimit, parts: parts},
	}
}

// total is the memory of all components together, in bytes.
func total(f contract.Figures) (rss, pss int64) {
	for _, c := range f.Components {
		rss, pss = rss+c.RSS, pss+c.PSS
	}
	return rss, pss
}

// components is a table of what each program uses, in each gVisor and natively.
func components(names []string, all []contract.Results) string {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "MB\tnatively, PSS\tnatively, RSS\t%s, RSS\n", strings.Join(names, ", RSS\t"))
	native := all[0].Native
	row := func(name string, pss, rss int64, of func(contract.Figures) int64) {
		fmt.Fprintf(table, "%s\t%.0f\t%.0f", name, megabytes(pss), megabytes(rss))
		for _, results := range all {
			fmt.Fprintf(table, "\t%.0f", megabytes(of(results.GVisor)))
		}
		fmt.Fprintln(table)
	}
	for _, c := range native.Components {
		row(c.Name, c.PSS, c.RSS, func(f contract.Figures) int64 {
			for _, other := range f.Components {
				if other.Name == c.Name {
					return other.RSS
				}
			}
			return 0
		})
	}
	rss, pss := total(native)
	row("all", pss, rss, func(f contract.Figures) int64 { rss, _ := total(f); return rss })
	_ = table.Flush()
	return strings.TrimRight(text.String(), "\n")
}

// megabytes is a number of bytes in MB, powers of 1000.
func megabytes(bytes int64) float64 { return float64(bytes) / 1e6 }
