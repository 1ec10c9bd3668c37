package builder

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k3s9p/internal/hint"
	"k3s9p/internal/image"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/test/gvisor/leftover"
)

// Scenario is a directory of test/ that runs in sandboxes.
type Scenario struct {
	Name string
	// Everywhere says that it runs in each gVisor, and not in the newest only.
	Everywhere bool
}

// Scenarios are all of them, in the order in which they run.
var Scenarios = []Scenario{{"cluster", true}, {"updown", false}, {"native", false}, {"experiment", false}, {"pods", true}, {"stats", true}, {"overlayroot", false}, {"hungmount", false}}

func scenarioNames() []string {
	var names []string
	for _, s := range Scenarios {
		names = append(names, s.Name)
	}
	return names
}

// The sets that are built for these tests only: the sandbox of today, and those of
// earlier months, which people have. A set is called gvisor-YYYYMM.
const (
	sandboxSet   = "gvisor"
	olderSandbox = sandboxSet + "-"
)

// runscOf is how the sandbox of a set is called among the programs of the tests.
func runscOf(set string) string { return "runsc" + strings.TrimPrefix(set, sandboxSet) }

// variant is a set as it is without some of its patches or tags: what a scenario
// compares with.
type variant struct {
	set    string // the one that patches this module
	change func(*Set) *Set
	rename func(program string) string
}

func stock(program string) string { return "stock-" + program }

func only(modules ...string) func(*Set) *Set {
	return func(s *Set) *Set { return s.patchedOnly(modules) }
}

func as(name string) func(string) string { return func(string) string { return name } }

const cgroups = "github.com/opencontainers/cgroups"

var variants = []variant{
	{"kubernetes", only(), as("kube-stock")},
	{"kubernetes", only(cgroups), as("kube-cgroups")},
	{"kubernetes", only(cgroups, cadvisor), as("kube-cadvisor")},
	{"containerd", only(), stock},
	{"cni", only(), stock},
	{"runc", (*Set).withoutSeccomp, as("runc-noseccomp")},
}

// sandboxRun is a scenario in one gVisor.
type sandboxRun struct{ scenario, set string }

func (r sandboxRun) String() string {
	if r.set == sandboxSet {
		return r.scenario
	}
	return r.scenario + strings.TrimPrefix(r.set, sandboxSet)
}

// compares reports whether a run compares with variants of the sets.
func (r sandboxRun) compares() bool { return r.scenario != benchScenario }

// sandboxRuns lists what is to run: all, or one scenario, in each gVisor that it is
// for, or in one (today, or YYYYMM).
func sandboxRuns(scenario, gvisor string, sets []string) ([]sandboxRun, error) {
	if scenario != "" && !slices.Contains(scenarioNames(), scenario) {
		return nil, hint.Add(fmt.Errorf("there is no scenario %q", scenario), "the scenarios are %s", strings.Join(scenarioNames(), ", "))
	}
	chosen, err := sandboxSetsOf(gvisor, sets)
	if err != nil {
		return nil, err
	}
	var runs []sandboxRun
	for _, set := range chosen {
		for _, s := range Scenarios {
			switch {
			case scenario != "" && scenario != s.Name:
			case gvisor == "" && !s.Everywhere && set != sandboxSet:
			default:
				runs = append(runs, sandboxRun{s.Name, set})
			}
		}
	}
	return runs, nil
}

// gvisorName is how a user calls the gVisor of a set: today, or YYYYMM.
func gvisorName(set string) string {
	if set == sandboxSet {
		return "today"
	}
	return strings.TrimPrefix(set, olderSandbox)
}

// sandboxSetsOf is the set of the gVisor that is called so, or all.
func sandboxSetsOf(gvisor string, sets []string) ([]string, error) {
	if gvisor == "" {
		return sets, nil
	}
	var known []string
	for _, set := range sets {
		if gvisorName(set) == gvisor {
			return []string{set}, nil
		}
		known = append(known, gvisorName(set))
	}
	return nil, hint.Add(fmt.Errorf("there is no gVisor %q", gvisor), "build/ has %s", strings.Join(known, ", "))
}

// sandboxSets are the names of the sets with a gVisor, the newest first.
func (b *Builder) sandboxSets() ([]string, error) {
	sets, err := b.ReadSets()
	if err != nil {
		return nil, err
	}
	var older []string
	for _, set := range sets {
		if strings.HasPrefix(set.Name, olderSandbox) {
			older = append(older, set.Name)
		}
	}
	slices.Sort(older)
	slices.Reverse(older)
	return append([]string{sandboxSet}, older...), nil
}

// TestSandbox runs the scenarios, or one of them, in real gVisor sandboxes, with
// the programs in dist/.
func (b *Builder) TestSandbox(ctx context.Context, only, gvisor string) (err error) {
	defer func() { err = b.noSpace(err) }()
	names, err := b.sandboxSets()
	if err != nil {
		return err
	}
	scenarios, err := sandboxRuns(only, gvisor, names)
	if err != nil {
		return err
	}
	if why := refusal(); why != nil {
		if os.Getenv("CI") != "" {
			return fmt.Errorf("in CI no scenario may be skipped: %w", why)
		}
		b.UI.Step("test in gVisor").Skip("%v", why)
		return nil
	}
	var failed []string
	start := time.Now()
	err = b.withSandboxes(ctx, scenarios, func(env []string) error {
		start = time.Now()
		for _, scenario := range scenarios {
			ok, err := b.runScenario(ctx, scenario, env)
			if err != nil {
				return err
			}
			if !ok {
				failed = append(failed, scenario.String())
			}
		}
		if len(failed) > 0 {
			return hint.Add(fmt.Errorf("%d of %d scenarios failed in gVisor: %s", len(failed), len(scenarios), strings.Join(failed, ", ")),
				"what they printed is in %s", b.dist("reports", "sandbox-*.log"))
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Printf("%d scenarios passed in gVisor in %s; the reports are in %s\n", len(scenarios), progress.Elapsed(time.Since(start)), b.dist("reports"))
	return nil
}

// withSandboxes calls f with what runs need, and with the variables that tell them.
func (b *Builder) withSandboxes(ctx context.Context, runs []sandboxRun, f func(env []string) error) (err error) {
	selection, err := b.selection("kubernetes")
	if err != nil {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.checkDist(selection); err != nil {
		return err
	}
	env, err := b.sandboxEnvironment(ctx, selection, runs)
	if err != nil {
		return err
	}
	leftover.Launcher = b.dist(launcherName)
	// Whatever a run leaves that was killed, or had a panic in a goroutine.
	defer func() {
		if ctx.Err() != nil {
			leftover.Wait(b.sandboxes(), 4*time.Second) // mage ends the process after 5 s
		}
		err = errors.Join(err, leftover.Clean(b.sandboxes(), b.UI.Say))
	}()
	return f(env)
}

// refusal is the reason why sandboxes cannot be started here, or nil.
func refusal() error {
	if os.Geteuid() != 0 {
		return hint.Add(errors.New("a sandbox needs root"), "sudo go tool mage test:sandbox")
	}
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if err := probe.Run(); err != nil {
		return hint.Add(fmt.Errorf("network and mount namespaces are refused here: %w", err), "a container needs CAP_SYS_ADMIN for them: run this on a machine, or in a privileged container")
	}
	return nil
}

func (b *Builder) sandboxes() string { return b.work("sandboxes") }

// checkDist makes sure that dist/ has what these sources give: that is what the
// scenarios test.
func (b *Builder) checkDist(selection Selection) error {
	const build = "go tool mage build"
	data, err := os.ReadFile(b.dist(recordName))
	if errors.Is(err, os.ErrNotExist) {
		return hint.Add(fmt.Errorf("there are no programs in %s to test", b.dist()), build)
	}
	if err != nil {
		return err
	}
	var there record.Build
	if err := json.Unmarshal(data, &there); err != nil {
		return hint.Add(fmt.Errorf("%s: %w", b.dist(recordName), err), build)
	}
	for _, set := range selection.Sets {
		i := slices.IndexFunc(there.Sets, func(other record.Set) bool { return other.Name == set.Name })
		if i < 0 {
			return hint.Add(fmt.Errorf("dist/ has nothing of build/%s: it was made for distribution %s", set.Name, there.Distribution), "DISTRO=%s %s", selection.Distribution, build)
		}
		if err := set.compare(there.Sets[i]); err != nil {
			return hint.Add(fmt.Errorf("dist/ was built from other pins, patches or flags: %w", err), build)
		}
	}
	for _, output := range there.Outputs {
		if output.Link != "" {
			continue
		}
		if sum, _, err := hashFile(b.dist(output.Path)); err != nil || sum != output.SHA256 {
			return hint.Add(errors.Join(fmt.Errorf("%s is not what was built", b.dist(output.Path)), err), build)
		}
	}
	return nil
}

// compare says in what the record of a build differs from this set.
func (s *Set) compare(built record.Set) error {
	if built.Version != s.Version() {
		return fmt.Errorf("%s is %s in dist/, and %s in build/ and patches/", s.Name, built.Version, s.Version())
	}
	flags, err := s.flags()
	if err != nil {
		return err
	}
	if !slices.Equal(built.Flags, flags) {
		return fmt.Errorf("%s has other flags of go build", s.Name)
	}
	for _, module := range built.Modules {
		if pin, ok := s.Pins[module.Path]; ok && pin.Version != module.Version {
			return fmt.Errorf("%s has %s %s in dist/, and %s in build/%s/go.mod", s.Name, module.Path, module.Version, pin.Version, s.Name)
		}
	}
	return nil
}

// sandboxEnvironment makes all that the scenarios put into sandboxes, and returns
// the variables that tell them.
func (b *Builder) sandboxEnvironment(ctx context.Context, selection Selection, runs []sandboxRun) ([]string, error) {
	programs, err := b.sandboxPrograms(ctx, selection, runs)
	if err != nil {
		return nil, err
	}
	root, err := b.debianRoot(ctx)
	if err != nil {
		return nil, err
	}
	if err := linkFile(root, filepath.Join(programs, "root.tar")); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.sandboxes(), 0o755); err != nil {
		return nil, err
	}
	return append(b.goEnv(false),
		"K3S9P_SANDBOX_PROGRAMS="+programs,
		"K3S9P_SANDBOXES="+b.sandboxes(),
		"K3S9P_REPORTS="+b.dist("reports")), nil
}

// sandboxPrograms makes a directory of programs and images.
func (b *Builder) sandboxPrograms(ctx context.Context, selection Selection, runs []sandboxRun) (string, error) {
	sets, err := b.ReadSets()
	if err != nil {
		return "", err
	}
	var sandboxes []*Set
	for _, set := range sets {
		if slices.ContainsFunc(runs, func(r sandboxRun) bool { return r.set == set.Name }) {
			sandboxes = append(sandboxes, set)
		}
	}
	all := append(slices.Clone(selection.Sets), sandboxes...)
	if err := b.provide(ctx, all); err != nil {
		return "", err
	}
	chain, err := b.toolchain(ctx, all)
	if err != nil {
		return "", err
	}
	dir, err := b.temporary("sandbox")
	if err != nil {
		return "", err
	}
	for _, set := range selection.Sets {
		for _, program := range set.Config.Programs {
			if err := linkFile(b.dist(program.Dir, program.Name), filepath.Join(dir, program.Name)); err != nil {
				return "", err
			}
		}
	}
	b.made = make(map[string]bool)
	for _, set := range sandboxes {
		if err := b.linkPrograms(ctx, set, chain, dir, as(runscOf(set.Name))); err != nil {
			return "", err
		}
	}
	if err := linkFile(b.dist(launcherName), filepath.Join(dir, launcherName)); err != nil {
		return "", err
	}
	for _, v := range variants {
		if !slices.ContainsFunc(runs, sandboxRun.compares) {
			break
		}
		i := slices.IndexFunc(selection.Sets, func(s *Set) bool { return s.Name == v.set })
		if i < 0 {
			return "", fmt.Errorf("distribution %s has no set %s", selection.Distribution, v.set)
		}
		if err := b.linkPrograms(ctx, v.change(selection.Sets[i]), chain, dir, v.rename); err != nil {
			return "", err
		}
	}
	for name, pkg := range map[string]string{"inside": "./test/gvisor/inside", "web": "./test/web"} {
		_, err := b.run(ctx, command{dir: b.Root, env: b.goEnv(false), args: []string{
			"go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(dir, name), pkg}})
		if err != nil {
			return "", err
		}
	}
	if err := image.Save(filepath.Join(dir, "web.tar"), "k3s9p.local/web:1", filepath.Join(dir, "web")); err != nil {
		return "", err
	}
	return dir, linkFile(b.dist("images", "pause.tar"), filepath.Join(dir, "pause.tar"))
}

// linkPrograms makes a set and links its programs into dir.
func (b *Builder) linkPrograms(ctx context.Context, set *Set, chain record.Toolchain, dir string, rename func(string) string) error {
	c, err := b.make(ctx, set, chain)
	if err != nil {
		return err
	}
	for _, output := range c.Outputs {
		if output.Link != "" {
			continue
		}
		if err := linkFile(c.file(output), filepath.Join(dir, rename(filepath.Base(output.Path)))); err != nil {
			return err
		}
	}
	return nil
}

// patchedOnly is the set with the series of the given modules only. Its outputs
// are kept under another name, so that they do not displace those of the set.
func (s *Set) patchedOnly(modules []string) *Set {
	changed := *s
	changed.Variant = fmt.Sprintf(".%d-patched", len(modules))
	changed.Series = slices.DeleteFunc(slices.Clone(s.Series), func(series PinnedSeries) bool { return !slices.Contains(modules, series.Pin.Path) })
	return &changed
}

// withoutSeccomp is the set without the tag that links libseccomp.
func (s *Set) withoutSeccomp() *Set {
	changed := *s
	changed.Variant = ".no-seccomp"
	changed.Config.Tags = slices.DeleteFunc(slices.Clone(s.Config.Tags), func(tag string) bool { return tag == "seccomp" })
	return &changed
}

// runScenario runs the tests of a directory and shows each as it ends.
func (b *Builder) runScenario(ctx context.Context, run sandboxRun, env []string) (bool, error) {
	name := run.String()
	log, err := os.CreateTemp(b.work("tmp"), "scenario-")
	if err != nil {
		return false, err
	}
	defer log.Close()
	step := b.UI.Step("%s in gVisor", name)
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1", "-vet=off", "-timeout=15m", "./test/"+run.scenario)
	cmd.Dir, cmd.Env = b.Root, append(slices.Clone(env), "K3S9P_RUNSC="+runscOf(run.set))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The tests delete their sandboxes when they are told to end.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	output, err := cmd.StdoutPipe()
	if err != nil {
		step.Fail()
		return false, err
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		step.Fail()
		return false, err
	}
	outcome, readErr := b.follow(output, name, step, log)
	err = errors.Join(cmd.Wait(), readErr)
	_ = copyFile(log.Name(), b.dist("reports", "sandbox-"+name+".log"), 0o644)
	if ctx.Err() != nil {
		step.Fail()
		return false, context.Cause(ctx)
	}
	switch {
	case err != nil || outcome.failed > 0:
		step.Fail()
		if outcome.failed == 0 {
			text, _ := os.ReadFile(log.Name())
			return false, fmt.Errorf("go test ./test/%s: %w\n%s", name, err, text)
		}
		return false, nil
	case outcome.skipped > 0 && os.Getenv("CI") != "":
		step.Fail()
		return false, fmt.Errorf("in CI no scenario may be skipped: %s skipped %d tests", name, outcome.skipped)
	case outcome.passed == 0:
		step.Fail()
		return false, fmt.Errorf("scenario %s passed no test: nothing was tested", name)
	}
	step.Done("%d tests passed", outcome.passed)
	return true, nil
}

// outcome counts the tests of a scenario, not those that have subtests.
type outcome struct{ passed, failed, skipped int }

// follow reads what go test -json writes: it shows each test when it ends, with
// its result (an attribute of the test), and what a failed one printed.
func (b *Builder) follow(events io.Reader, scenario string, step *progressStep, log io.Writer) (outcome, error) {
	var total outcome
	printed := make(map[string]*strings.Builder)
	results := make(map[string]string)
	parents := make(map[string]bool)
	scanner := bufio.NewScanner(events)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var event struct {
			Action, Test, Output, Key, Value string
			Elapsed                          float64
		}
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			fmt.Fprintln(log, scanner.Text())
			continue
		}
		if event.Output != "" {
			io.WriteString(log, event.Output)
			if printed[event.Test] == nil {
				printed[event.Test] = new(strings.Builder)
			}
			printed[event.Test].WriteString(event.Output)
		}
		title := scenario + ": " + title(event.Test)
		switch event.Action {
		case "run":
			step.Note("%s", title)
			parents[filepath.Dir(event.Test)] = true
		case "attr":
			if event.Key == "result" {
				results[event.Test] = event.Value
			}
		case "pass", "fail", "skip":
			if event.Test == "" || parents[event.Test] && event.Action == "pass" {
				continue
			}
			line := fmt.Sprintf("%s (%.1fs)", title, event.Elapsed)
			if result := results[event.Test]; result != "" {
				line = fmt.Sprintf("%s: %s (%.1fs)", title, result, event.Elapsed)
			}
			switch event.Action {
			case "pass":
				total.passed++
				b.UI.Say("  ✓ %s", line)
			case "skip":
				total.skipped++
				b.UI.Say("  – %s\n%s", line, printed[event.Test])
			case "fail":
				total.failed++
				b.UI.Say("  ✗ %s\n%s", line, printed[event.Test])
			}
		}
	}
	return total, scanner.Err()
}

// title is the name of a test without what all of them have.
func title(test string) string {
	return strings.ReplaceAll(strings.TrimPrefix(test, "Test"), "_", " ")
}
