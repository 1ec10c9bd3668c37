package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"k3s9p/internal/builder"
	"k3s9p/internal/proof/scenario"
)

// distribution is what the scenarios test.
const distribution = "kubernetes"

// guard is what has to fail in a copy of the repository that lacks something.
type guard interface {
	fmt.Stringer
	// ask builds and tests. It returns what was printed of the failure, or "" if there
	// was none; the error says why it could not ask.
	ask(ctx context.Context, b *builder.Builder) (failure string, err error)
}

// sandboxTest is a test of a scenario.
type sandboxTest struct {
	scenario, gvisor string
	test             string // as go test names it: TestX/part; "" is all that run
	run              string // what runs of the scenario, as -run of go test
}

// alone is a test that runs without its siblings.
func alone(scenario, gvisor, test string) sandboxTest {
	return sandboxTest{scenario, gvisor, test, "^" + strings.ReplaceAll(test, "/", "$/^") + "$"}
}

// whole is a test that needs what its siblings do, or that is not a part of one.
func whole(scenario, gvisor, test string) sandboxTest {
	top, _, _ := strings.Cut(test, "/")
	return sandboxTest{scenario, gvisor, test, "^" + top + "$"}
}

// together are all tests of some removals that are of one scenario, as one.
func (g sandboxTest) together(all []removal) sandboxTest {
	var run []string
	for _, r := range all {
		if other, ok := r.test.(sandboxTest); ok && other.scenario == g.scenario && other.gvisor == g.gvisor && !slices.Contains(run, other.run) {
			run = append(run, other.run)
		}
	}
	return sandboxTest{scenario: g.scenario, gvisor: g.gvisor, run: strings.Join(run, "|")}
}

func (g sandboxTest) String() string {
	return fmt.Sprintf("%s of %s in %s", g.test, g.scenarioRun(), g.scenarioRun().Where())
}

func (g sandboxTest) scenarioRun() scenario.Run {
	return scenario.Run{Scenario: g.scenario, Set: scenario.SetOf(g.gvisor)}
}

func (g sandboxTest) ask(ctx context.Context, b *builder.Builder) (string, error) {
	if _, err := child(ctx, b, distribution, 0, "build"); err != nil {
		return "", err
	}
	log := b.Dist("reports", "sandbox-"+g.scenarioRun().String()+".log")
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	_, failure := child(ctx, b, distribution, 0, "test:sandbox", "-scenario="+g.scenario, "-gvisor="+g.gvisor, "-run="+g.run)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	text, err := os.ReadFile(log)
	switch {
	case err != nil:
		return "", fmt.Errorf("its tests did not run: %w", failure)
	case failure == nil:
		return "", nil
	case g.test != "" && !strings.Contains(string(text), "--- FAIL: "+g.test+" ("):
		return "", fmt.Errorf("something else failed: %w", failure)
	}
	return string(text), nil
}

// program is the build itself: what the overlay adds needs the patch.
type program struct{}

func (program) String() string { return "the build" }

func (program) ask(ctx context.Context, b *builder.Builder) (string, error) {
	_, failure := child(ctx, b, distribution, 0, "build")
	if ctx.Err() != nil || failure == nil {
		return "", context.Cause(ctx)
	}
	return failure.Error(), nil
}
