package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"k3s9p/internal/builder"
	"k3s9p/internal/hint"
	"k3s9p/internal/proof/leftover"
	"k3s9p/internal/proof/scenario"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// Outcome is what came of one removal: a line of dist/reports/proof.json.
type Outcome struct {
	Without string `json:"without"`
	Test    string `json:"test"`
	// Red is what the test said without it, or empty if it did not turn red.
	Red string `json:"red,omitempty"`
	// Blind says why the removal proves nothing.
	Blind string `json:"blind,omitempty"`
}

// Proof takes out one patch, fix or probe after the other, or those whose name matches a
// pattern, in a copy of the repository, and expects the test that protects it to fail,
// which has passed before in the same copy.
func Proof(ctx context.Context, b *builder.Builder, only string) (err error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only=%s: %w", only, err)
	}
	var chosen []removal
	for _, r := range removals {
		if pattern.MatchString(r.part.String()) {
			chosen = append(chosen, r)
		}
	}
	if len(chosen) == 0 {
		return hint.Add(fmt.Errorf("the name of nothing that can be taken out matches %q", only), "the names are in internal/proof/verify/removals.go: patch MODULE NUMBER, fix ID, probe ID")
	}
	if why := scenario.Preflight(); why != nil {
		return fmt.Errorf("the proof starts sandboxes: %w", why)
	}
	c, err := newCopy(b, chosen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.remove()) }()
	var outcomes []Outcome
	blind := 0
	for _, r := range chosen {
		step := b.UI.Step("without %s", r.part)
		outcome := c.try(ctx, r)
		if ctx.Err() != nil {
			step.Fail()
			return context.Cause(ctx)
		}
		outcomes = append(outcomes, outcome)
		if outcome.Blind != "" {
			blind++
			step.Fail()
			b.UI.Say("  %s: %s", outcome.Test, outcome.Blind)
		} else {
			step.Done("%s is red: %s", outcome.Test, outcome.Red)
		}
		if err := workdir.WriteJSON(b.Dist("reports", "proof.json"), outcomes); err != nil {
			return err
		}
	}
	if blind > 0 {
		return hint.Add(fmt.Errorf("%d of %d removals turned no test red", blind, len(chosen)), "the whole outcome is in %s", b.Dist("reports", "proof.json"))
	}
	fmt.Printf("proof: %d were taken out, one at a time, and each turned its test red\n", len(chosen))
	return nil
}

// sources are what parts are taken out of.
var sources = []string{"patches", filepath.Join("internal", "blocker")}

// copied is a copy of the repository, which is never touched itself: a run that is killed
// leaves it as it was, and what is left of the copy goes with the next run.
type copied struct {
	*builder.Builder
	dir    string
	chosen []removal
	green  map[guard]error // what came of tests with everything in place
}

func newCopy(b *builder.Builder, chosen []removal) (*copied, error) {
	base := b.Work("proof")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	if err := leftover.Clean(base, b.UI.Say); err != nil {
		return nil, err
	}
	dir, err := leftover.Claim(base)
	if err != nil {
		return nil, err
	}
	c := &copied{dir: dir, chosen: chosen, green: make(map[guard]error)}
	if c.Builder, err = b.CloneWithCache(filepath.Join(dir, "repository")); err == nil {
		err = c.shortenSandboxes()
		for _, name := range sources {
			err = errors.Join(err, os.CopyFS(filepath.Join(dir, "whole", name), os.DirFS(filepath.Join(c.Root, name))))
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.remove())
	}
	return c, nil
}

// shortenSandboxes moves the copy's sandboxes up: the data of a node on this machine itself
// is in such a directory, and the path of a socket below that may have 104 bytes.
func (c *copied) shortenSandboxes() error {
	place := filepath.Join(c.dir, "s")
	link := c.Work("sandboxes") // in a tree in which nothing was built so far, .work is not there
	return errors.Join(os.Mkdir(place, 0o755), os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(place, link))
}

func (c *copied) remove() error { return leftover.Remove(c.dir) }

// restore puts everything back.
func (c *copied) restore() error {
	failures := rmtree.Tree(c.Work("edit"))
	for _, name := range sources {
		failures = errors.Join(failures, rmtree.Tree(filepath.Join(c.Root, name)), os.CopyFS(filepath.Join(c.Root, name), os.DirFS(filepath.Join(c.dir, "whole", name))))
	}
	return failures
}

// try takes one part out and asks its test.
func (c *copied) try(ctx context.Context, r removal) Outcome {
	outcome := Outcome{Without: r.part.String(), Test: r.test.String()}
	if err := c.passes(ctx, r.test); err != nil {
		outcome.Blind = "with everything in place: " + err.Error()
		return outcome
	}
	err := r.part.takeOut(ctx, c.Builder)
	var failure string
	if err == nil {
		failure, err = r.test.ask(ctx, c.Builder)
	}
	switch {
	case err != nil:
		outcome.Blind = err.Error()
	case failure == "":
		outcome.Blind = "it passes all the same"
	default:
		if outcome.Red = r.says.In(failure); outcome.Red == "" {
			outcome.Blind = fmt.Sprintf("it fails, but does not say %q:\n%s", r.says, failure)
		}
	}
	if err := c.restore(); err != nil {
		outcome.Blind = strings.TrimSpace(outcome.Blind + "\n" + err.Error())
	}
	return outcome
}

// passes asks a test with everything in place, once, with all that are to be asked of its
// scenario.
func (c *copied) passes(ctx context.Context, test guard) error {
	if t, ok := test.(sandboxTest); ok {
		test = t.together(c.chosen)
	}
	err, asked := c.green[test]
	if !asked {
		var failure string
		if failure, err = test.ask(ctx, c.Builder); err == nil && failure != "" {
			err = errors.New("it fails: " + failure)
		}
		c.green[test] = err
	}
	return err
}
