//go:build mage

// Pinned sources and a patch series become a Kubernetes that runs on 9p.
package main

import (
	"context"
	"os"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
)

// Build makes the patched distribution in dist/ (DISTRO=k3s|kubernetes|auto); with -dry it only says what it would do.
func Build(ctx context.Context, dry *bool) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	if dry != nil && *dry {
		return b.Plan(ctx, os.Getenv("DISTRO"))
	}
	return b.Build(ctx, os.Getenv("DISTRO"))
}

// Clean removes what was built, in .work/ and dist/; edit trees and reports stay.
func Clean(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.Clean(ctx)
}
