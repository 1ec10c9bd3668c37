//go:build mage

package main

import (
	"context"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
	"k3s9p/internal/proof/bench"
	"k3s9p/internal/proof/scenario"
	"k3s9p/internal/proof/verify"
)

// Verify groups the proofs that take as long as builds.
type Verify mg.Namespace

// Reproducible builds twice in different directories and compares SHA256SUMS; -cold with an empty Go build cache each, -arch=arm64 for another architecture.
func (Verify) Reproducible(ctx context.Context, cold *bool, arch *string) error {
	return with(func(b *builder.Builder) error {
		return verify.Reproducible(ctx, b, distro(), given(arch, b.Target()), given(cold, false))
	})
}

// Interrupted kills builds at 10 random moments (-times=N) and compares what the next build gives.
func (Verify) Interrupted(ctx context.Context, times *int) error {
	return with(func(b *builder.Builder) error { return verify.Interrupted(ctx, b, distro(), given(times, 10)) })
}

// Killed kills check, up and down in a gVisor sandbox at 100 random moments (-times=N); after each the next down leaves nothing.
func (Verify) Killed(ctx context.Context, times *int) error {
	return with(func(b *builder.Builder) error {
		return scenario.Test(ctx, b, scenario.Options{Only: "undo", Tests: "TestKilled", Kills: given(times, 100)})
	})
}

// Proof takes out one patch, fix or probe after the other, or those whose name matches -only=PATTERN, in a copy, and expects the test that protects it to fail.
func (Verify) Proof(ctx context.Context, only *string) error {
	return with(func(b *builder.Builder) error { return verify.Proof(ctx, b, given(only, "")) })
}

// Bench measures the build against plain go build, patched code against stock, clusters in each gVisor against the same natively, and nodes without privileges against those with; -only=build|cluster|rootless|images, the last the two ways to keep images where overlayfs does not work, -cold also a first build, -gvisor=today|YYYYMM in one gVisor only, -times=N, 3 by default, how often each.
func Bench(ctx context.Context, only *string, cold *bool, gvisor *string, times *int) error {
	return with(func(b *builder.Builder) error {
		return bench.Run(ctx, b, distro(), bench.Options{Only: given(only, ""), Cold: given(cold, false), GVisor: given(gvisor, ""), Times: given(times, 3)})
	})
}
