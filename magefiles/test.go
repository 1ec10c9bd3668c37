//go:build mage

package main

import (
	"context"
	"os"
	"strings"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
	"k3s9p/internal/proof/own"
	sandbox "k3s9p/internal/proof/scenario"
	"k3s9p/internal/proof/upstream"
)

// Test groups the tests.
type Test mg.Namespace

// Aliases lets "test" stand for all tests, and "release" for making one.
var Aliases = map[string]any{"test": Test.All, "release": Release.Make}

// All runs every test: lint, test:unit, test:upstream, test:sandbox. "mage test" is the same.
func (t Test) All(ctx context.Context) error {
	upstreams := func(ctx context.Context) error { return t.Upstream(ctx, nil) }
	scenarios := func(ctx context.Context) error { return t.Sandbox(ctx, nil, nil, nil, nil) }
	for _, test := range []func(context.Context) error{Lint, t.Unit, upstreams, scenarios} {
		if err := test(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Unit runs the tests of this repository: units, and the targets as a user runs them.
func (Test) Unit(ctx context.Context) error {
	return with(func(b *builder.Builder) error { return own.Test(ctx, b) })
}

// Upstream runs the test suites of the patched modules, stock against patched; -skip leaves out what needs root where this is not root.
func (Test) Upstream(ctx context.Context, skip *bool) error {
	return with(func(b *builder.Builder) error { return upstream.Test(ctx, b, given(skip, false)) })
}

// Sandbox runs the scenarios in real gVisor sandboxes with a 9p root: all, or the one whose name follows; -gvisor=today|YYYYMM in one gVisor only, =native on this kernel without one; -run=PATTERN those of its tests that match; -skip where no sandbox can be started.
func (Test) Sandbox(ctx context.Context, scenario, gvisor, run *string, skip *bool) error {
	return with(func(b *builder.Builder) error {
		return sandbox.Test(ctx, b, sandbox.Options{Only: given(scenario, ""), GVisor: given(gvisor, ""), Tests: given(run, ""), MaySkip: given(skip, false)})
	})
}

// Linux9p brings nodes up on Linux with a 9p root, in virtual machines whose processors are emulated: some 20 minutes, and no part of "mage test".
func (t Test) Linux9p(ctx context.Context) error {
	name := "linux9p"
	return t.Sandbox(ctx, &name, nil, nil, nil)
}

// "mage test:sandbox experiment": mage takes an optional argument only with its
// name, and a word for one more target.
func init() {
	flags := map[string]string{"test:sandbox": "-scenario=", "release:verify": "-place="}
	for i := 1; i < len(os.Args)-1; i++ {
		if flag := flags[strings.ToLower(os.Args[i])]; flag != "" && !strings.HasPrefix(os.Args[i+1], "-") {
			os.Args[i+1] = flag + os.Args[i+1]
		}
	}
}

// Lint runs gofmt, go vet, staticcheck, misspell, shellcheck and actionlint.
func Lint(ctx context.Context) error {
	return with(func(b *builder.Builder) error { return own.Lint(ctx, b) })
}

// Docs brings what README.md and docs/ say of the experiment to what the last "mage test:sandbox experiment" has seen.
func Docs() error { return with(sandbox.UpdateDocs) }
