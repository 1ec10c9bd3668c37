//go:build mage

package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
	"k3s9p/internal/gotool"
	"k3s9p/internal/proof/emulated"
	"k3s9p/internal/release"
)

// Release groups what a release page needs.
type Release mg.Namespace

// Make builds for amd64 and arm64, or for -archs=ARCH,…, and makes dist/release/ of that, signed with the key that K3S9P_RELEASE_KEY names; -snapshot also of files that no commit has, marked so. "mage release" is the same.
func (Release) Make(ctx context.Context, snapshot *bool, archs *string) error {
	return with(func(b *builder.Builder) error {
		m := release.Maker{Root: b.Root, Progress: b.UI, Getenv: os.Getenv}
		check := m.Check
		if given(snapshot, false) {
			check = m.CheckSnapshot
		}
		if err := check(ctx); err != nil {
			return err
		}
		dists, err := b.BuildFor(ctx, distro(), strings.Split(given(archs, strings.Join(gotool.Architectures(), ",")), ","))
		if err != nil {
			return err
		}
		return m.Make(ctx, dists...)
	})
}

// Emulated runs what was built for another architecture under qemu-user: each program says its version, and some unit tests pass.
func (Release) Emulated(ctx context.Context, arch string) error {
	return with(func(b *builder.Builder) error {
		other, err := b.For(arch)
		if err != nil {
			return err
		}
		return emulated.Test(ctx, other)
	})
}

// Verify verifies dist/release/, or the release in the directory or at the address that follows, from its files alone; -rebuild also builds it again, of its tag, and compares bit by bit.
func (Release) Verify(ctx context.Context, place *string, rebuild *bool) error {
	return with(func(b *builder.Builder) error {
		v := release.Verifier{Root: b.Root, Progress: b.UI, Getenv: os.Getenv}
		if given(rebuild, false) {
			v.Again = release.Mage
		}
		verified, err := v.Verify(ctx, given(place, release.Dir))
		if err != nil {
			return err
		}
		fmt.Println(verified)
		return nil
	})
}
