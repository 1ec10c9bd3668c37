//go:build mage

// Pinned sources and a patch series become a Kubernetes that runs on 9p.
package main

import (
	"context"
	"os"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
)

// with calls f with a builder for the repository in the current directory.
func with(f func(*builder.Builder) error) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return f(b)
}

// given is the value of an optional argument, or what stands for it.
func given[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

// distro is the distribution that is asked for.
func distro() string { return os.Getenv("DISTRO") }

// Build makes the patched distribution in dist/ (DISTRO=k3s|kubernetes|auto); with -dry it only says what it would do, with -slim k3s gets nothing that is no Go module, -arch=arm64 is for another architecture, in dist/arm64/.
func Build(ctx context.Context, dry, slim *bool, arch *string) error {
	return with(func(b *builder.Builder) error {
		b.Slim = given(slim, false)
		b, err := b.For(given(arch, b.Target()))
		if err != nil {
			return err
		}
		if given(dry, false) {
			return b.Plan(ctx, distro())
		}
		return b.Build(ctx, distro())
	})
}

// Clean removes what was built, in .work/ and dist/; edit trees and reports stay.
func Clean(ctx context.Context) error {
	return with(func(b *builder.Builder) error { return b.Clean(ctx) })
}
