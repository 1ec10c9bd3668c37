//go:build mage

package main

import (
	"context"
	"os"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
)

// Verify groups the proofs that take as long as builds.
type Verify mg.Namespace

// Reproducible builds twice in different folders and compares SHA256SUMS; -cold with an empty Go build cache each.
func (Verify) Reproducible(ctx context.Context, cold *bool) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.Reproducible(ctx, os.Getenv("DISTRO"), cold != nil && *cold)
}

// Interrupted kills builds at 10 random moments (-times=N) and compares what the next build gives.
func (Verify) Interrupted(ctx context.Context, times *int) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	n := 10
	if times != nil {
		n = *times
	}
	return b.Interrupted(ctx, os.Getenv("DISTRO"), n)
}

// Bench measures the build against plain go build, patched code against stock, and clusters in each gVisor against the same natively; -only=build|cluster, -cold also a first build, -gvisor=today|YYYYMM in one gVisor only, -times=N, 3 by default, how often each.
func Bench(ctx context.Context, only *string, cold *bool, gvisor *string, times *int) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	o := builder.BenchOptions{Only: orEmpty(only), Cold: cold != nil && *cold, GVisor: orEmpty(gvisor), Times: 3}
	if times != nil {
		o.Times = *times
	}
	return b.Bench(ctx, os.Getenv("DISTRO"), o)
}
