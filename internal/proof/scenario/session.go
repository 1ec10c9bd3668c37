package scenario

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k3s9p/internal/builder"
	"k3s9p/internal/hint"
	"k3s9p/internal/progress"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/gotest"
	"k3s9p/internal/proof/leftover"
	"k3s9p/internal/workdir"
)

// Options say what Test runs.
type Options struct {
	Only   string // one scenario, or all if it is ""
	GVisor string // in one gVisor (today, YYYYMM), in none (native), or in each that a scenario is for
	Tests  string // of the scenario: those that match, as -run of go test, or all if it is ""
	Kills  int    // how many commands the scenario undo kills, or as many as fit in a test run if it is 0
	// MaySkip makes it no failure that no sandbox can be started here.
	MaySkip bool
}

// Test runs scenarios in real gVisor sandboxes, with the programs in dist/.
func Test(ctx context.Context, b *builder.Builder, o Options) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	scenarios, err := runs(b.Root, inDist(b), o)
	if err != nil {
		return err
	}
	if why := Preflight(); why != nil {
		if o.MaySkip {
			b.UI.Step("test in gVisor").Skip("%v", why)
			return nil
		}
		return fmt.Errorf("no sandbox can be started, and nothing is tested (-skip lets that pass): %w", why)
	}
	var failed []string
	start := time.Now()
	err = With(ctx, b, scenarios, func(s *Session) error {
		s.given.Kills = cmp.Or(o.Kills, s.given.Kills)
		start = time.Now()
		if err := clearReport(b, scenarios); err != nil {
			return err
		}
		for _, scenario := range scenarios {
			ok, err := s.Run(ctx, scenario)
			if err != nil {
				return err
			}
			if !ok {
				failed = append(failed, scenario.String())
			}
		}
		reportErr := concludeReport(b, scenarios)
		if len(failed) > 0 {
			return hint.Add(fmt.Errorf("%d of %d scenarios failed: %s", len(failed), len(scenarios), strings.Join(failed, ", ")),
				"what they printed is in %s", b.Dist("reports", "sandbox-*.log"))
		}
		return reportErr
	})
	if err != nil {
		return err
	}
	fmt.Printf("%s passed in %s; the reports are in %s\n", progress.Count(len(scenarios), "scenario"), progress.Elapsed(time.Since(start)), b.Dist("reports"))
	return nil
}

// Session is what runs have in common: a locked work tree, and the programs.
type Session struct {
	b     *builder.Builder
	given contract.Run
}

// With calls f with what some runs need, and cleans up what they leave.
func With(ctx context.Context, b *builder.Builder, runs []Run, f func(*Session) error) (err error) {
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return err
	}
	defer unlock()
	selection, err := b.Selection(ctx, cmp.Or(runs[0].Distribution, kubernetes))
	if err != nil {
		return err
	}
	if err := validateDist(b, selection); err != nil {
		return err
	}
	programs, err := makePrograms(ctx, b, selection, runs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.Work("sandboxes"), 0o755); err != nil {
		return err
	}
	sandboxes, err := filepath.EvalSymlinks(b.Work("sandboxes"))
	if err != nil {
		return err
	}
	s := &Session{b, contract.Run{Distribution: runs[0].Distribution, Kills: someKills, Programs: programs, Sandboxes: sandboxes, Reports: b.Dist("reports")}}
	leftover.Launcher = b.Dist(builder.LauncherName)
	if err := leftover.Clean(s.given.Sandboxes, b.UI.Say); err != nil {
		return err
	}
	// Whatever a run leaves that was killed, or had a panic in a goroutine.
	defer func() {
		if ctx.Err() != nil {
			leftover.WaitForRuns(s.given.Sandboxes, 4*time.Second) // mage ends the process after 5 s
		}
		err = errors.Join(err, leftover.Clean(s.given.Sandboxes, b.UI.Say))
	}()
	return f(s)
}

// someKills are a few of each command.
const someKills = 6

// limit is how long a scenario may take. It is told to end then, as by Ctrl-C: go test
// itself would end it without a word, and what it has in sandboxes would stay.
const limit = 15 * time.Minute

// longLimit is the same in virtual machines, and where more is killed than usual.
const longLimit = 45 * time.Minute

// Run runs the tests of a scenario and shows each as it ends.
func (s *Session) Run(ctx context.Context, run Run) (bool, error) {
	name := run.String()
	log, err := os.CreateTemp(s.b.Work("tmp"), "scenario-")
	if err != nil {
		return false, err
	}
	defer log.Close()
	given := s.given
	given.GVisor, given.Runsc, given.Bench = GVisor(run.Set), runsc(run.Set), run.Bench
	variable, err := given.Variable()
	if err != nil {
		return false, err
	}
	step := s.b.UI.Step("%s in %s", name, run.Where())
	limit := limit
	if run.virtual() || given.Kills > someKills {
		limit = longLimit
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := []string{"test", "-json", "-count=1", "-vet=off", "-timeout=" + (2 * limit).String()}
	if run.Tests != "" {
		args = append(args, "-run="+run.Tests)
	}
	cmd := exec.CommandContext(limited, "go", append(args, "./test/"+run.Scenario)...)
	cmd.Dir, cmd.Env = s.b.Root, append(s.b.Env(false), variable)
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
	outcome, readErr := s.follow(output, name, step, log)
	err = errors.Join(cmd.Wait(), readErr)
	_ = workdir.CopyFile(log.Name(), s.b.Dist("reports", "sandbox-"+name+".log"), 0o644)
	if ctx.Err() != nil {
		step.Fail()
		return false, context.Cause(ctx)
	}
	switch {
	case limited.Err() != nil:
		step.Fail()
		s.b.UI.Say("%s did not end within %s, and was told to; what it printed is in %s", name, progress.Elapsed(limit), s.b.Dist("reports", "sandbox-"+name+".log"))
		return false, nil
	case err != nil || outcome.failed > 0:
		step.Fail()
		if outcome.failed == 0 {
			text, _ := os.ReadFile(log.Name())
			return false, fmt.Errorf("go test ./test/%s: %w\n%s", run.Scenario, err, text)
		}
		return false, nil
	case outcome.skipped > 0:
		step.Fail()
		return false, fmt.Errorf("%s skipped %s", name, progress.Count(outcome.skipped, "test"))
	case outcome.passed == 0:
		step.Fail()
		return false, fmt.Errorf("scenario %s passed no test: nothing was tested", name)
	}
	step.Done("%s passed", progress.Count(outcome.passed, "test"))
	return true, nil
}

// outcome counts the tests of a scenario, not those that have subtests.
type outcome struct{ passed, failed, skipped int }

// follow reads what go test -json writes: it shows each test when it ends, with
// its result (an attribute of the test), and what a failed one printed.
func (s *Session) follow(events io.Reader, scenario string, step *progress.Step, log io.Writer) (outcome, error) {
	var total outcome
	printed := make(map[string]*strings.Builder)
	results := make(map[string]string)
	parents := make(map[string]bool)
	err := gotest.Read(events, func(event gotest.Event) {
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
				return
			}
			line := fmt.Sprintf("%s (%.1fs)", title, event.Elapsed)
			if result := results[event.Test]; result != "" {
				line = fmt.Sprintf("%s: %s (%.1fs)", title, result, event.Elapsed)
			}
			switch event.Action {
			case "pass":
				total.passed++
				s.b.UI.Say("  ✓ %s", line)
			case "skip":
				total.skipped++
				s.b.UI.Say("  – %s\n%s", line, printed[event.Test])
			case "fail":
				total.failed++
				s.b.UI.Say("  ✗ %s\n%s", line, printed[event.Test])
			}
		}
	})
	return total, err
}

// title is the name of a test without what all of them have.
func title(test string) string {
	return strings.ReplaceAll(strings.TrimPrefix(test, "Test"), "_", " ")
}
