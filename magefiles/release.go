//go:build mage

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
	"k3s9p/internal/release"
)

// Release groups what a release page needs.
type Release mg.Namespace

// Make builds, and makes dist/release/ of what was built, signed with the key that K3S9P_RELEASE_KEY names; -snapshot also of files that no commit has, marked so. "mage release" is the same.
func (Release) Make(ctx context.Context, snapshot *bool) error {
	return with(func(b *builder.Builder) error {
		m := release.Maker{Root: b.Root, Progress: b.UI, Getenv: os.Getenv}
		check := m.Check
		if given(snapshot, false) {
			check = m.CheckSnapshot
		}
		if err := check(ctx); err != nil {
			return err
		}
		if err := b.Build(ctx, distro()); err != nil {
			return err
		}
		return m.Make(ctx, "dist")
	})
}

// Verify verifies dist/release/, or the release in the directory or at the address that follows, from its files alone.
func (Release) Verify(ctx context.Context, place *string) error {
	return with(func(b *builder.Builder) error {
		v := release.Verifier{Root: b.Root, Progress: b.UI, Getenv: os.Getenv}
		verified, err := v.Verify(ctx, given(place, release.Dir))
		if err != nil {
			return err
		}
		fmt.Println(verified)
		return nil
	})
}
