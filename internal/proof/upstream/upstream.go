// Package upstream runs the test suites of the patched modules, stock against patched.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/gotool"
	"k3s9p/internal/packages"
	"k3s9p/internal/pin"
	"k3s9p/internal/workdir"
)

// Test runs the suites, stock and patched, and fails if a test fails with the patches
// that does not fail without them. Suites that cannot run here are a failure too, unless
// they may be skipped. The report goes to dist/reports/upstream.json.
func Test(ctx context.Context, b *builder.Builder, maySkip bool) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	sets, err := pin.ReadSets(b.Root)
	if err != nil {
		return err
	}
	if err := b.Writable(); err != nil {
		return err
	}
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return err
	}
	defer unlock()
	var report []Suite
	for _, set := range sets {
		if len(set.Config.UpstreamTests) == 0 {
			continue
		}
		suites, err := testSet(ctx, b, set)
		if err != nil {
			return err
		}
		report = append(report, suites...)
	}
	file := b.Dist("reports", "upstream.json")
	if err := workdir.WriteJSON(file, report); err != nil {
		return err
	}
	return conclude(report, file, maySkip)
}

func conclude(report []Suite, file string, maySkip bool) error {
	var stock, patched Counts
	var regressions, skipped []string
	for _, s := range report {
		stock, patched = stock.plus(s.Stock), patched.plus(s.Patched)
		regressions = append(regressions, s.Regressions...)
		if s.Skipped != "" {
			skipped = append(skipped, fmt.Sprintf("%s: %s", strings.Join(s.Packages, " "), s.Skipped))
		}
	}
	fmt.Printf("upstream's tests, stock: %s\nupstream's tests, patched: %s\nreport: %s\n", stock, patched, file)
	if len(skipped) > 0 && !maySkip {
		return fmt.Errorf("suites were skipped (-skip lets that pass):\n%s", strings.Join(skipped, "\n"))
	}
	if len(regressions) > 0 {
		return fmt.Errorf("%d tests fail with the patches and not without them:\n%s", len(regressions), strings.Join(regressions, "\n"))
	}
	if patched.Passed == 0 {
		return errors.New("no test passed: nothing was tested")
	}
	return nil
}

func testSet(ctx context.Context, b *builder.Builder, set *pin.Set) ([]Suite, error) {
	trees, err := b.Sources(ctx, set)
	if err != nil {
		return nil, err
	}
	stockTrees, err := b.StockSources(ctx, set)
	if err != nil {
		return nil, err
	}
	patched, err := b.Modfile(set, set.Name+"-test-patched", trees)
	if err != nil {
		return nil, err
	}
	stock, err := b.Modfile(set, set.Name+"-test-stock", stockTrees)
	if err != nil {
		return nil, err
	}
	if err := fetchModules(ctx, b, set, patched, stock); err != nil {
		return nil, err
	}
	if err := vetOurs(ctx, b, set, patched); err != nil {
		return nil, err
	}
	var suites []Suite
	for _, test := range set.Config.UpstreamTests {
		s, err := compare(ctx, b, set, test, side{"stock", stock}, side{"patched", patched})
		if err != nil {
			return nil, err
		}
		suites = append(suites, s)
	}
	return suites, nil
}

// fetchModules fetches the modules that only tests of dependencies import. They
// are in the module graph, and in go.sum, but not among those that go.mod names
// and Builder.Download fetches.
func fetchModules(ctx context.Context, b *builder.Builder, set *pin.Set, modfiles ...string) error {
	step := b.UI.Step("%s: fetch the modules of the tests", set.Name)
	for _, modfile := range modfiles {
		args := []string{"go", "list", "-deps", "-test", "-mod=readonly", "-modfile=" + modfile}
		for _, test := range set.Config.UpstreamTests {
			args = append(args, test.Packages...)
		}
		_, err := b.Run(ctx, command.Command{Dir: set.Dir, Env: b.Env(set.Config.CGO), Args: args, Line: func(line string) { step.Note("%s", line) }})
		if err != nil {
			step.Fail()
			return gotool.ModuleError(set.Place(), "", strings.Join(command.Stderr(err), "\n"))
		}
	}
	step.Done("")
	return nil
}

// vetOurs runs go vet on what is ours: the programs of the set, and the packages
// of upstream that the overlay adds files to.
func vetOurs(ctx context.Context, b *builder.Builder, set *pin.Set, patched string) error {
	var packages []string
	if own, err := filepath.Glob(filepath.Join(set.Dir, "*.go")); err != nil {
		return err
	} else if len(own) > 0 {
		packages = append(packages, "./...")
	}
	for _, series := range set.Series {
		files, err := series.OverlayFiles()
		if err != nil {
			return err
		}
		for _, file := range files {
			pkg := path.Join(series.Pin.Path, filepath.ToSlash(filepath.Dir(file)))
			if strings.HasSuffix(file, ".go") && !slices.Contains(packages, pkg) {
				packages = append(packages, pkg)
			}
		}
	}
	if len(packages) == 0 {
		return nil
	}
	step := b.UI.Step("%s: go vet", set.Name)
	args := append([]string{"go", "vet", "-trimpath", "-mod=readonly", "-modfile=" + patched}, packages...)
	if _, err := b.Run(ctx, command.Command{Dir: set.Dir, Env: b.Offline(set.Config.CGO), Args: args}); err != nil {
		step.Fail()
		return err
	}
	step.Done("%d packages", len(packages))
	return nil
}

// compare runs a list of packages with the stock and with the patched modules.
func compare(ctx context.Context, b *builder.Builder, set *pin.Set, test pin.UpstreamTest, stock, patched side) (Suite, error) {
	s := Suite{Set: set.Name, Packages: test.Packages}
	title := "test " + strings.Join(test.Packages, " ")
	if test.Root && os.Geteuid() != 0 {
		s.Skipped = "its tests need root and network namespaces"
		b.UI.Step("%s", title).Skip("%s", s.Skipped)
		return s, nil
	}
	if err := packages.Install(ctx, b.Runner, test.Needs); err != nil {
		return s, err
	}
	step := b.UI.Step("%s", title)
	r := runner{b, set, test, step}
	if err := r.compare(ctx, &s, stock, patched); err != nil {
		step.Fail()
		return s, fmt.Errorf("%s: %w", title, err)
	}
	if len(s.Regressions) > 0 {
		step.Fail()
		return s, nil
	}
	step.Done("stock %s; patched %s", s.Stock, s.Patched)
	return s, nil
}

func (r runner) compare(ctx context.Context, s *Suite, stock, patched side) error {
	before, err := r.run(ctx, stock, r.test.Packages)
	if err != nil {
		return err
	}
	after, err := r.run(ctx, patched, r.test.Packages)
	if err != nil {
		return err
	}
	if err := before.sound(); err != nil {
		return fmt.Errorf("%s: %w", stock.name, err)
	}
	if err := after.sound(); err != nil {
		return fmt.Errorf("%s: %w", patched.name, err)
	}
	s.Regressions = after.failuresNotIn(before)
	if len(s.Regressions) > 0 {
		again, err := r.run(ctx, side{patched.name + ", again", patched.modfile}, packagesOf(s.Regressions))
		if err != nil {
			return err
		}
		s.settle(after, again)
	}
	s.Stock, s.Patched, s.StockFailures = before.counts(), after.counts(), before.failures()
	return nil
}
