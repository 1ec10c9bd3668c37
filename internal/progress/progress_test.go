package progress

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPlainLines(t *testing.T) { synctest.Test(t, plainLines) }

func plainLines(t *testing.T) {
	var out bytes.Buffer
	p := NewPlain(&out)
	p.Say("hello %d", 1)
	step := p.Step("compile")
	step.Note("3 packages")
	step.Done("%d programs", 2)
	p.Step("pack").Skip("up to date")
	p.Step("sign").Fail()
	got := out.String()
	for _, want := range []string{"hello 1\n", "✓ compile: 2 programs (0.0s)\n", "– pack: up to date\n", "✗ sign: failed (0.0s)\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
	if strings.ContainsAny(got, "\r\x1b") {
		t.Errorf("plain output moves the cursor: %q", got)
	}
}

func TestLiveLineFitsAndIsErased(t *testing.T) { synctest.Test(t, liveLine) }

func liveLine(t *testing.T) {
	var out bytes.Buffer
	p := &Printer{out: &out, live: true, width: func() int { return 20 }}
	step := p.Step("a title that is longer than the line")
	step.Done("")
	for _, line := range strings.Split(out.String(), "\r\x1b[K") {
		if live := strings.TrimSuffix(line, "\n"); strings.HasPrefix(live, "•") && len([]rune(live)) >= 20 {
			t.Errorf("the live line is wider than the terminal: %q", live)
		}
	}
	if !strings.HasSuffix(out.String(), "\r\x1b[K✓ a title that is longer than the line (0.0s)\n") {
		t.Errorf("the live line is not replaced: %q", out.String())
	}
}

// The live line is that of the step that was started last of those that still run.
func TestStepsAtTheSameTime(t *testing.T) { synctest.Test(t, sameTime) }

func sameTime(t *testing.T) {
	var out bytes.Buffer
	p := &Printer{out: &out, live: true, width: func() int { return 80 }}
	one, other := p.Step("one"), p.Step("other")
	other.Done("")
	live := func() string { return out.String()[strings.LastIndex(out.String(), "\r\x1b[K"):] }
	if got := live(); got != "\r\x1b[K✓ other (0.0s)\n• one (0.0s)" {
		t.Errorf("after the end of one of two the screen ends in %q", got)
	}
	one.Done("")
	if got := live(); got != "\r\x1b[K✓ one (0.0s)\n" {
		t.Errorf("after the end of both it ends in %q", got)
	}
}

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		Elapsed(412 * time.Millisecond): "0.4s", Elapsed(185 * time.Second): "3m05s", Elapsed(59999 * time.Millisecond): "60.0s",
		Size(12): "12 B", Size(156307618): "156.3 MB", Size(2500): "2.5 kB",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 tests", 1: "1 test", 2: "2 tests"} {
		if got := Count(n, "test"); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
