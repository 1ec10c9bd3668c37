//go:build mage

package main

import (
	"context"
	"os"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
)

// Patch groups what maintainers do with the patches.
type Patch mg.Namespace

// List shows every patch: module, version, number, forwarded or not, description; -o=json for records.
func (Patch) List(o *string) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	output := ""
	if o != nil {
		output = *o
	}
	return b.ListPatches(os.Stdout, output)
}

// Verify applies every series strictly to its pin.
func (Patch) Verify(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.VerifyPatches(ctx)
}

// Edit makes a git tree of a patched module (cadvisor, plugins, …), its series as commits.
func (Patch) Edit(ctx context.Context, module string) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.EditPatches(ctx, module)
}

// Save regenerates the patch files of a module from its edit tree.
func (Patch) Save(ctx context.Context, module string) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.SavePatches(ctx, module)
}
