package builder

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"k3s9p/internal/hint"
)

// suite is what one run of a list of packages gave: the outcome (pass, fail,
// skip) by test, where a test is "package name".
type suite map[string]string

// Suite is a line of the report of test:upstream.
type Suite struct {
	Set      string   `json:"set"`
	Packages []string `json:"packages"`
	Stock    Counts   `json:"stock"`
	Patched  Counts   `json:"patched"`
	// StockFailures fail here without any patch; the patched tree may fail them too.
	StockFailures []string `json:"stockFailures,omitempty"`
	// Regressions fail with the patches and not without them.
	Regressions []string `json:"regressions,omitempty"`
	// Flaky failed once with the patches and passed when they were run again.
	Flaky   []string `json:"flaky,omitempty"`
	Skipped string   `json:"skipped,omitempty"` // why the suite was not run
}

// Counts are numbers of tests, subtests included.
type Counts struct {
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
}

func (c Counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

// TestUpstream runs the test suites of the patched modules, stock and patched,
// and fails if a test fails with the patches that does not fail without them. The
// report goes to dist/reports/upstream.json.
func (b *Builder) TestUpstream(ctx context.Context) (err error) {
	defer func() { err = b.noSpace(err) }()
	sets, err := b.ReadSets()
	if err != nil {
		return err
	}
	if err := b.writable(); err != nil {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	var report []Suite
	for _, set := range sets {
		if len(set.Config.UpstreamTests) == 0 {
			continue
		}
		suites, err := b.testSet(ctx, set)
		if err != nil {
			return err
		}
		report = append(report, suites...)
	}
	return b.concludeTests(report)
}

func (b *Builder) concludeTests(report []Suite) error {
	var stock, patched Counts
	var regressions, skipped []string
	for _, s := range report {
		stock, patched = stock.plus(s.Stock), patched.plus(s.Patched)
		regressions = append(regressions, s.Regressions...)
		if s.Skipped != "" {
			skipped = append(skipped, fmt.Sprintf("%s: %s", strings.Join(s.Packages, " "), s.Skipped))
		}
	}
	file := b.dist("reports", "upstream.json")
	err := writeAside(file, 0o644, func(w io.Writer) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	})
	if err != nil {
		return err
	}
	fmt.Printf("upstream's tests, stock: %s\nupstream's tests, patched: %s\nreport: %s\n", stock, patched, file)
	if len(skipped) > 0 && os.Getenv("CI") != "" {
		return fmt.Errorf("in CI no suite may be skipped:\n%s", strings.Join(skipped, "\n"))
	}
	if len(regressions) > 0 {
		return fmt.Errorf("%d tests fail with the patches and not without them:\n%s", len(regressions), strings.Join(regressions, "\n"))
	}
	if patched.Passed == 0 {
		return errors.New("no test passed: nothing was tested")
	}
	return nil
}

func (c Counts) plus(other Counts) Counts {
	return Counts{c.Passed + other.Passed, c.Failed + other.Failed, c.Skipped + other.Skipped}
}

func (b *Builder) testSet(ctx context.Context, set *Set) ([]Suite, error) {
	trees, err := b.sources(ctx, set)
	if err != nil {
		return nil, err
	}
	stockTrees, err := b.stockTrees(ctx, set)
	if err != nil {
		return nil, err
	}
	patched, err := b.modfileFor(set, set.Name+"-test-patched", trees)
	if err != nil {
		return nil, err
	}
	stock, err := b.modfileFor(set, set.Name+"-test-stock", stockTrees)
	if err != nil {
		return nil, err
	}
	if err := b.fetchForTests(ctx, set, patched, stock); err != nil {
		return nil, err
	}
	if err := b.vetOurs(ctx, set, patched); err != nil {
		return nil, err
	}
	var suites []Suite
	for _, test := range set.Config.UpstreamTests {
		s, err := b.testBoth(ctx, set, test, stock, patched)
		if err != nil {
			return nil, err
		}
		suites = append(suites, s)
	}
	return suites, nil
}

// fetchForTests fetches the modules that only tests of dependencies import. They
// are in the module graph, and in go.sum, but not among those that go.mod names
// and download fetches.
func (b *Builder) fetchForTests(ctx context.Context, set *Set, modfiles ...string) error {
	step := b.UI.Step("%s: fetch the modules of the tests", set.Name)
	for _, modfile := range modfiles {
		args := []string{"go", "list", "-deps", "-test", "-mod=readonly", "-modfile=" + modfile}
		for _, test := range set.Config.UpstreamTests {
			args = append(args, test.Packages...)
		}
		_, err := b.run(ctx, command{dir: set.Dir, env: b.goEnv(set.Config.CGO), args: args, line: func(line string) { step.Note("%s", line) }})
		if err != nil {
			step.Fail()
			return moduleError(set, "", strings.Join(stderrOf(err), "\n"))
		}
	}
	step.Done("")
	return nil
}

// vetOurs runs go vet on what is ours: the programs of the set, and the packages
// of upstream that the overlay adds files to.
func (b *Builder) vetOurs(ctx context.Context, set *Set, patched string) error {
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
	if _, err := b.run(ctx, command{dir: set.Dir, env: b.offline(set), args: args}); err != nil {
		step.Fail()
		return err
	}
	step.Done("%d packages", len(packages))
	return nil
}

// stockTrees are writable trees of the patched modules without the patches, so
// that both sides are tested under the same conditions.
func (b *Builder) stockTrees(ctx context.Context, set *Set) (map[string]string, error) {
	step := b.UI.Step("%s: unpack the stock sources", set.Name)
	zips, err := b.download(ctx, set, step)
	if err != nil {
		step.Fail()
		return nil, err
	}
	trees := make(map[string]string)
	for _, series := range set.Series {
		tree, err := b.stockTree(series, zips[series.Pin.Path])
		if err != nil {
			step.Fail()
			return nil, err
		}
		trees[series.Pin.Path] = tree
	}
	step.Done("")
	return trees, nil
}

func (b *Builder) testBoth(ctx context.Context, set *Set, test UpstreamTest, stock, patched string) (Suite, error) {
	s := Suite{Set: set.Name, Packages: test.Packages}
	if test.Root && os.Geteuid() != 0 {
		s.Skipped = "its tests need root and network namespaces"
		b.UI.Step("%s", test.title()).Skip("%s", s.Skipped)
		return s, nil
	}
	if err := b.provide(ctx, []*Set{{Config: Config{Needs: test.Needs}}}); err != nil {
		return s, err
	}
	step := b.UI.Step("%s", test.title())
	before, err := b.runTests(ctx, set, test, stock, "stock", test.Packages, step)
	if err != nil {
		step.Fail()
		return s, err
	}
	after, err := b.runTests(ctx, set, test, patched, "patched", test.Packages, step)
	if err != nil {
		step.Fail()
		return s, err
	}
	for side, results := range map[string]suite{"stock": before, "patched": after} {
		if err := results.sound(); err != nil {
			step.Fail()
			return s, fmt.Errorf("%s, %s: %w", test.title(), side, err)
		}
	}
	s.Regressions = after.failuresNotIn(before)
	if len(s.Regressions) > 0 {
		again, err := b.runTests(ctx, set, test, patched, "patched, again", packagesOf(s.Regressions), step)
		if err != nil {
			step.Fail()
			return s, err
		}
		s.settle(after, again)
	}
	s.Stock, s.Patched, s.StockFailures = before.counts(), after.counts(), before.failures()
	if len(s.Regressions) > 0 {
		step.Fail()
		return s, nil
	}
	step.Done("stock %s; patched %s", s.Stock, s.Patched)
	return s, nil
}

// settle takes a failure that did not happen again for a flake.
func (s *Suite) settle(after, again suite) {
	var regressions []string
	for _, test := range s.Regressions {
		if again[test] == "pass" {
			s.Flaky = append(s.Flaky, test)
			after[test] = "pass"
		} else {
			regressions = append(regressions, test)
		}
	}
	s.Regressions = regressions
}

func (t UpstreamTest) title() string {
	return "test " + strings.Join(t.Packages, " ")
}

func (b *Builder) runTests(ctx context.Context, set *Set, test UpstreamTest, modfile, side string, packages []string, step *progressStep) (suite, error) {
	step.Note("%s", side)
	programs, err := b.helpers(ctx, set, test, modfile)
	if err != nil {
		return nil, err
	}
	if !test.Ginkgo {
		return b.goTest(ctx, set, test, modfile, programs, side, step, packages...)
	}
	all := make(suite)
	for _, pkg := range packages {
		specs, err := b.ginkgo(ctx, set, test, modfile, programs, side, step, pkg)
		if err != nil {
			return nil, err
		}
		for name, outcome := range specs {
			all[name] = outcome
		}
	}
	return all, nil
}

// helpers builds the programs that tests look for in PATH.
func (b *Builder) helpers(ctx context.Context, set *Set, test UpstreamTest, modfile string) (string, error) {
	path := os.Getenv("PATH")
	if len(test.Path) == 0 {
		return path, nil
	}
	dir, err := b.temporary("path")
	if err != nil {
		return "", err
	}
	args := append([]string{"go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-modfile=" + modfile, "-o", dir + "/"}, test.Path...)
	_, err = b.run(ctx, command{dir: set.Dir, env: b.offline(set), args: args})
	return dir + string(filepath.ListSeparator) + path, err
}

// goTest runs packages with go test. Tests that fail are a result; that go test
// itself does not work is an error.
func (b *Builder) goTest(ctx context.Context, set *Set, test UpstreamTest, modfile, path, side string, step *progressStep, args ...string) (suite, error) {
	c := command{
		dir: set.Dir,
		env: append(b.offline(set), "PATH="+path),
		args: append([]string{"go", "test", "-json", "-trimpath", "-buildvcs=false", "-vet=off", "-mod=readonly", "-timeout=10m",
			"-modfile=" + modfile}, args...),
		line: func(line string) { step.Note("%s: %s", side, line) },
	}
	if test.Root {
		// Whatever the tests mount or configure ends with them, also the network
		// namespaces that they name in /run.
		c.unshare = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET
		c.args = append([]string{"sh", "-c", `mount -t tmpfs tmpfs /run && mkdir /run/netns && exec "$@"`, "sh"}, c.args...)
	}
	out, runErr := b.run(ctx, c)
	if ctx.Err() != nil {
		return nil, runErr
	}
	results := make(suite)
	output := make(map[string][]string)
	builds := make(map[string][]string) // by package, as the failed event of a test names it
	scanner := bufio.NewScanner(bytes.NewReader(out))
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var event struct{ Action, Package, ImportPath, Test, Output, FailedBuild string }
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			continue // not a line of go test -json
		}
		name := strings.TrimSpace(event.Package + " " + event.Test)
		switch event.Action {
		case "pass", "fail", "skip":
			if event.Test != "" || event.Action == "fail" {
				results[name] = event.Action
			}
		case "output":
			output[name] = append(output[name], event.Output)
		case "build-output":
			builds[event.ImportPath] = append(builds[event.ImportPath], event.Output)
		}
		if event.FailedBuild != "" {
			output[name] = append(output[name], builds[event.FailedBuild]...)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	if runErr != nil && len(results) == 0 {
		return nil, fmt.Errorf("run the tests of build/%s (%s): %w", set.Name, side, runErr)
	}
	b.keepOutput(set, side, results, output)
	results.dropPackages()
	return results, nil
}

// keepOutput leaves what failed tests printed in dist/reports.
func (b *Builder) keepOutput(set *Set, side string, results suite, output map[string][]string) {
	failed := results.failures()
	if len(failed) == 0 {
		return
	}
	name := fmt.Sprintf("upstream-%s-%s.log", set.Name, strings.ReplaceAll(side, ", ", "-"))
	file, err := os.OpenFile(b.work("tmp", name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	for _, test := range failed {
		fmt.Fprintf(file, "=== %s\n%s\n", test, strings.Join(output[test], ""))
	}
	if err := file.Close(); err == nil {
		_ = copyFile(file.Name(), b.dist("reports", name), 0o644)
	}
}

// ginkgo runs one package and counts its specs, from Ginkgo's own report.
func (b *Builder) ginkgo(ctx context.Context, set *Set, test UpstreamTest, modfile, path, side string, step *progressStep, pkg string) (suite, error) {
	dir, err := b.temporary("ginkgo")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "report.json")
	plain, err := b.goTest(ctx, set, test, modfile, path, side, step, pkg, "-args", "-ginkgo.json-report="+file)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return plain, nil // it did not compile, or did not get to the report
	}
	if err != nil {
		return nil, err
	}
	return readGinkgo(pkg, data)
}

func readGinkgo(pkg string, data []byte) (suite, error) {
	var reports []struct {
		SpecReports []struct {
			ContainerHierarchyTexts   []string
			LeafNodeText, State       string
			LeafNodeType              string
			SpecialSuiteFailureReason string
		}
	}
	if err := json.Unmarshal(data, &reports); err != nil {
		return nil, hint.Add(fmt.Errorf("read Ginkgo's report of %s: %w", pkg, err), "its format is that of ginkgo v2, types.Report")
	}
	outcome := map[string]string{"passed": "pass", "skipped": "skip", "pending": "skip"}
	specs := make(suite)
	for _, report := range reports {
		for _, spec := range report.SpecReports {
			name := pkg + " " + strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if spec.LeafNodeType != "It" {
				name += " (" + spec.LeafNodeType + ")"
			}
			for n := 2; specs[name] != ""; n++ {
				name = fmt.Sprintf("%s #%d", strings.TrimSuffix(name, fmt.Sprintf(" #%d", n-1)), n)
			}
			if specs[name] = outcome[spec.State]; specs[name] == "" {
				specs[name] = "fail"
			}
		}
	}
	return specs, nil
}

// dropPackages removes the failures of packages that a failure of their tests
// explains. What stays did not compile or crashed.
func (s suite) dropPackages() {
	for _, test := range s.failures() {
		if pkg, _, found := strings.Cut(test, " "); found {
			delete(s, pkg)
		}
	}
}

// sound refuses results from which nothing can be concluded: a package that does
// not compile or crashes, on either side, and a run in which no test passed.
func (s suite) sound() error {
	for _, test := range s.failures() {
		if !strings.Contains(test, " ") {
			return hint.Add(fmt.Errorf("the tests of %s did not run to their end", test), "what they printed is in dist/reports")
		}
	}
	if s.counts().Passed == 0 {
		return errors.New("no test passed")
	}
	return nil
}

func (s suite) counts() Counts {
	var c Counts
	for _, outcome := range s {
		switch outcome {
		case "pass":
			c.Passed++
		case "skip":
			c.Skipped++
		default:
			c.Failed++
		}
	}
	return c
}

func (s suite) failures() []string {
	var failed []string
	for test, outcome := range s {
		if outcome == "fail" {
			failed = append(failed, test)
		}
	}
	slices.Sort(failed)
	return failed
}

// failuresNotIn lists the tests that fail here and do not fail there, and the
// ones that pass there and are not here.
func (s suite) failuresNotIn(stock suite) []string {
	var regressions []string
	for _, test := range s.failures() {
		if stock[test] != "fail" {
			regressions = append(regressions, test)
		}
	}
	for test, outcome := range stock {
		if _, ran := s[test]; outcome == "pass" && !ran {
			regressions = append(regressions, test+" (did not run)")
		}
	}
	slices.Sort(regressions)
	return regressions
}

func packagesOf(tests []string) []string {
	var packages []string
	for _, test := range tests {
		pkg, _, _ := strings.Cut(test, " ")
		packages = append(packages, pkg)
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}
