// Package bench measures what the patches and the build cost against what they are
// made of, and a cluster in a sandbox against the same on this machine.
package bench

import (
	"context"
	"fmt"
	"slices"

	"k3s9p/internal/builder"
	"k3s9p/internal/hint"
	"k3s9p/internal/pin"
)

// What Run can be told to measure only.
const (
	BuildOnly    = "build"
	ClusterOnly  = "cluster"
	RootlessOnly = "rootless"
	ImagesOnly   = "images"
)

// Options say what is measured, and how long.
type Options struct {
	Only string // one of these, or all but ImagesOnly if it is empty
	Cold bool   // also a first build, which takes twice as long as one
	// Of the cluster: in which gVisor (today, YYYYMM, or all if empty), and how many
	// times in each.
	GVisor string
	Times  int
}

// Run measures the build against plain go build, the patched code against the
// stock code, and the cluster in each gVisor against the same natively, each pair in
// one run. Figures that miss their limit are an error.
func Run(ctx context.Context, b *builder.Builder, distro string, o Options) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	type part func(context.Context, *builder.Builder, pin.Selection) ([]measurement, error)
	build := []part{filesystems, builds}
	if o.Cold {
		build = append(build, coldBuild)
	}
	cluster := []part{func(ctx context.Context, b *builder.Builder, _ pin.Selection) ([]measurement, error) {
		return cluster(ctx, b, o.GVisor, o.Times)
	}}
	rung := []part{func(ctx context.Context, b *builder.Builder, _ pin.Selection) ([]measurement, error) {
		return rootless(ctx, b, o.GVisor, o.Times)
	}}
	ways := []part{func(ctx context.Context, b *builder.Builder, _ pin.Selection) ([]measurement, error) {
		return nil, images(ctx, b, o.Times)
	}}
	parts := map[string][]part{"": slices.Concat(cluster, rung, build), BuildOnly: build, ClusterOnly: cluster, RootlessOnly: rung, ImagesOnly: ways}[o.Only]
	if parts == nil {
		return hint.Add(fmt.Errorf("there is no benchmark %q", o.Only), "-only=%s, %s, %s or %s", BuildOnly, ClusterOnly, RootlessOnly, ImagesOnly)
	}
	if o.Times < 1 {
		return hint.Add(fmt.Errorf("-times=%d measures nothing", o.Times), "go tool mage bench -times=3")
	}
	selection, err := b.Choose(ctx, distro)
	if err != nil {
		return err
	}
	var all []measurement
	for _, measure := range parts {
		figures, err := measure(ctx, b, selection)
		if err != nil {
			return err
		}
		all = append(all, figures...)
	}
	missed := 0
	for _, m := range all {
		fmt.Println(m)
		if m.missed() {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d figures miss their limit", missed, len(all))
	}
	return nil
}
