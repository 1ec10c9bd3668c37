// Package progress shows what a long piece of work is doing.
//
// The rules of its output:
//
//   - It goes to standard error; results go to standard output.
//   - A step is one line. On a terminal the line of the running step is live,
//     with the elapsed time; elsewhere nothing moves the cursor: a step that is
//     still running after a while says so in plain lines.
//   - A finished step ends in its time, a skipped one says why, a failed one is
//     marked; the error itself is printed once, by whoever ends the program.
//   - Colour only on a terminal, and not with NO_COLOR (https://no-color.org).
package progress

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// heartbeat is how often a running step is mentioned off a terminal.
const heartbeat = 30 * time.Second

// Printer prints steps: one after the other or, where pieces of work go on at the same
// time, each when it ends; the live line is that of the last one that was started.
type Printer struct {
	out     io.Writer
	live    bool // the running step's line is redrawn
	colour  bool
	width   func() int
	mu      sync.Mutex
	running []*Step
}

// New returns a printer for standard error. With plain, no line is live even on
// a terminal, because the output of commands is shown between the lines.
func New(plain bool) *Printer {
	fd := int(os.Stderr.Fd())
	terminal := term.IsTerminal(fd) && os.Getenv("TERM") != "dumb"
	return &Printer{
		out:    os.Stderr,
		live:   terminal && !plain,
		colour: terminal && os.Getenv("NO_COLOR") == "",
		width: func() int {
			if width, _, err := term.GetSize(fd); err == nil && width > 0 {
				return width
			}
			return 80
		},
	}
}

// NewPlain returns a printer of plain lines.
func NewPlain(out io.Writer) *Printer {
	return &Printer{out: out}
}

// Say prints a line that belongs to no step.
func (p *Printer) Say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintf(p.out, format+"\n", args...)
	p.draw()
}

// Step starts a step. It ends with Done, Skip or Fail.
func (p *Printer) Step(format string, args ...any) *Step {
	s := &Step{p: p, title: fmt.Sprintf(format, args...), start: time.Now(), stop: make(chan struct{})}
	p.mu.Lock()
	p.erase()
	p.running = append(p.running, s)
	p.draw()
	p.mu.Unlock()
	s.ticking.Add(1)
	go s.tick()
	return s
}

// Step is one line of progress.
type Step struct {
	p       *Printer
	title   string
	start   time.Time
	note    string // guarded by p.mu
	stop    chan struct{}
	ticking sync.WaitGroup
}

// Note says what the step is doing just now.
func (s *Step) Note(format string, args ...any) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.note = fmt.Sprintf(format, args...)
	if s.p.live {
		s.p.erase()
		s.p.draw()
	}
}

// Done ends a step that did its work. The result may be empty.
func (s *Step) Done(format string, args ...any) {
	s.end("✓", "\x1b[32m", fmt.Sprintf(format, args...), true)
}

// Skip ends a step that had nothing to do.
func (s *Step) Skip(format string, args ...any) {
	s.end("–", "\x1b[2m", fmt.Sprintf(format, args...), false)
}

// Fail ends a step whose error the caller returns.
func (s *Step) Fail() { s.end("✗", "\x1b[31m", "failed", true) }

func (s *Step) end(mark, colour, result string, timed bool) {
	close(s.stop)
	s.ticking.Wait()
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.running = slices.DeleteFunc(p.running, func(other *Step) bool { return other == s })
	if p.colour {
		mark = colour + mark + "\x1b[0m"
	}
	line := mark + " " + s.title
	if result != "" {
		line += ": " + result
	}
	if timed {
		line += fmt.Sprintf(" (%s)", Elapsed(time.Since(s.start)))
	}
	fmt.Fprintln(p.out, line)
	p.draw()
}

func (s *Step) tick() {
	defer s.ticking.Done()
	interval := heartbeat
	if s.p.live {
		interval = 100 * time.Millisecond
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
		}
		s.p.mu.Lock()
		if s.p.live {
			s.p.erase()
			s.p.draw()
		} else {
			fmt.Fprintf(s.p.out, "… %s\n", s.line())
		}
		s.p.mu.Unlock()
	}
}

// line describes a running step. Its printer is locked.
func (s *Step) line() string {
	line := fmt.Sprintf("%s (%s)", s.title, Elapsed(time.Since(s.start).Truncate(time.Second)))
	if s.note != "" {
		line += " " + s.note
	}
	return line
}

func (p *Printer) erase() {
	if p.live && len(p.running) > 0 {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *Printer) draw() {
	if !p.live || len(p.running) == 0 {
		return
	}
	line := []rune("• " + p.running[len(p.running)-1].line())
	if width := p.width(); len(line) >= width {
		line = append(line[:max(width-2, 0)], '…')
	}
	fmt.Fprint(p.out, string(line))
}

// Elapsed prints a duration as people read it: 0.4s, 12.3s, 3m05s.
func Elapsed(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	d = d.Round(time.Second)
	return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
}

// Size prints a number of bytes as people read it, in powers of 1000: 156.3 MB.
func Size(bytes int64) string {
	value, units := float64(bytes), "B kB MB GB TB"
	unit, units, _ := strings.Cut(units, " ")
	for value >= 1000 && units != "" {
		value /= 1000
		unit, units, _ = strings.Cut(units, " ")
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", bytes)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// Count prints how many there are of something whose plural ends in s: 1 test, 2 tests.
func Count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
