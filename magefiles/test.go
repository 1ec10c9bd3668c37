//go:build mage

package main

import (
	"context"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
)

// Test groups the tests.
type Test mg.Namespace

// Aliases lets "test" stand for all tests.
var Aliases = map[string]any{"test": Test.All}

// All runs every test: lint, test:unit, test:upstream, test:sandbox. "mage test" is the same.
func (t Test) All(ctx context.Context) error {
	for _, test := range []func(context.Context) error{Lint, t.Unit, t.Upstream, t.Sandbox} {
		if err := test(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Unit runs the tests of this repository: units, and the targets as a user runs them.
func (Test) Unit(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.TestUnit(ctx)
}

// Upstream runs the test suites of the patched modules, stock against patched.
func (Test) Upstream(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.TestUpstream(ctx)
}

// Sandbox runs the scenarios in real gVisor sandboxes with a 9p root.
func (Test) Sandbox(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.TestSandbox(ctx)
}

// Lint runs gofmt, go vet and staticcheck.
func Lint(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.Lint(ctx)
}
