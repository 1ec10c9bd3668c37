//go:build mage

package main

import (
	"context"
	"os"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
	"k3s9p/internal/series"
)

// Patch groups what maintainers do with the patches.
type Patch mg.Namespace

// List shows every patch: module, version, number, forwarded or not, description; -o=json for records.
func (Patch) List(o *string) error {
	return with(func(b *builder.Builder) error { return series.List(b, os.Stdout, given(o, "")) })
}

// Verify applies every series strictly to its pin.
func (Patch) Verify(ctx context.Context) error {
	return with(func(b *builder.Builder) error { return series.Verify(ctx, b) })
}

// Edit makes a git tree of a patched module (cadvisor, plugins, …), its series as commits.
func (Patch) Edit(ctx context.Context, module string) error {
	return with(func(b *builder.Builder) error { return series.Edit(ctx, b, module) })
}

// Save regenerates the patch files of a module from its edit tree.
func (Patch) Save(ctx context.Context, module string) error {
	return with(func(b *builder.Builder) error { return series.Save(ctx, b, module) })
}
