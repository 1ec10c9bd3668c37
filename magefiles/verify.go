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

// Bench prints the ratios to plain go build and to the unpatched code; -cold also that of a first build.
func Bench(ctx context.Context, cold *bool) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.Bench(ctx, os.Getenv("DISTRO"), cold != nil && *cold)
}
