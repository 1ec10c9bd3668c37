//go:build mage

package main

import (
	"context"

	"github.com/magefile/mage/mg"

	"k3s9p/internal/builder"
)

// Test groups the tests. The target test runs all of them.
type Test mg.Namespace

// Upstream runs the test suites of the patched modules, stock against patched.
func (Test) Upstream(ctx context.Context) error {
	b, err := builder.New(mg.Verbose())
	if err != nil {
		return err
	}
	return b.TestUpstream(ctx)
}
