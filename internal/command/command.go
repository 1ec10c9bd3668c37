// Package command runs programs that end with this one: their process group gets
// SIGTERM when the context ends, and the kernel kills them when this process dies.
package command

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"k3s9p/internal/progress"
)

// Runner runs commands and shows them where that is asked for.
type Runner struct {
	UI      *progress.Printer
	Verbose bool // show commands and what they print
}

// Command is a program with its arguments.
type Command struct {
	Dir  string
	Env  []string // complete
	Args []string
	Line func(string) // called with each line of standard error
	// Noise reports whether such a line only says how far the command is: its failure
	// does not show it.
	Noise func(line string) bool
	// Unshare gives the command namespaces of its own (CLONE_NEWNS, …).
	Unshare uintptr
}

// Run runs the command and returns its standard output. Its failure is an *Error.
func (r Runner) Run(ctx context.Context, c Command) ([]byte, error) {
	if r.Verbose {
		r.UI.Say("+ cd %s && %s", c.Dir, strings.Join(c.Args, " "))
	}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env = c.Dir, c.Env
	// The signal is bound to the thread that starts the command, so it must live
	// as long (golang.org/issue/27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: c.Unshare}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	tail := &lines{noise: c.Noise, each: func(line string) {
		if r.Verbose {
			r.UI.Say("%s", line)
		}
		if c.Line != nil {
			c.Line(line)
		}
	}}
	cmd.Stderr = tail
	err := cmd.Run()
	tail.flush()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return stdout.Bytes(), &Error{Args: c.Args, Dir: c.Dir, Stderr: tail.last, Err: err}
	}
	return stdout.Bytes(), nil
}

// Error is the failure of a command with the end of what it printed.
type Error struct {
	Args   []string
	Dir    string
	Stderr []string // its last lines
	Err    error
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s in %s: %v", strings.Join(e.Args[:min(len(e.Args), 3)], " "), e.Dir, e.Err)
	if len(e.Stderr) > 0 {
		text += "\n" + strings.Join(e.Stderr, "\n")
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Stderr returns the lines that a failed command printed last.
func Stderr(err error) []string {
	var failed *Error
	if errors.As(err, &failed) {
		return failed.Stderr
	}
	return nil
}

// FirstLine returns the first line that a command prints, or nothing.
func FirstLine(ctx context.Context, args ...string) string {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return ""
	}
	scanner := bufio.NewScanner(io.LimitReader(bytes.NewReader(out), 4096))
	scanner.Scan()
	return scanner.Text()
}
