package builder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/progress"
)

// UI is where progress goes.
type UI struct {
	*progress.Printer
	Verbose bool // show commands and what they print
}

// command is a program run by a phase.
type command struct {
	dir  string
	env  []string // complete
	args []string
	line func(string) // called with each line of standard error
	// unshare gives the command namespaces of its own (CLONE_NEWNS, …).
	unshare uintptr
}

// run runs the command and returns its standard output. When it fails the error
// holds the end of its standard error. When the context ends, the command and
// its children get SIGTERM; when this process is killed, the kernel kills the
// command.
func (b *Builder) run(ctx context.Context, c command) ([]byte, error) {
	if b.UI.Verbose {
		b.UI.Say("+ cd %s && %s", c.dir, strings.Join(c.args, " "))
	}
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir, cmd.Env = c.dir, c.env
	// The signal is bound to the thread that starts the command, so it must live
	// as long (golang.org/issue/27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: c.unshare}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	tail := &lines{each: func(line string) {
		if b.UI.Verbose {
			b.UI.Say("%s", line)
		}
		if c.line != nil {
			c.line(line)
		}
	}}
	cmd.Stderr = tail
	err := cmd.Run()
	tail.flush()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return stdout.Bytes(), &commandError{args: c.args, dir: c.dir, stderr: tail.last, err: err}
	}
	return stdout.Bytes(), nil
}

// commandError is the failure of a command with the end of what it printed.
type commandError struct {
	args   []string
	dir    string
	stderr []string
	err    error
}

func (e *commandError) Error() string {
	text := fmt.Sprintf("%s in %s: %v", strings.Join(e.args[:min(len(e.args), 3)], " "), e.dir, e.err)
	if len(e.stderr) > 0 {
		text += "\n" + strings.Join(e.stderr, "\n")
	}
	return text
}

func (e *commandError) Unwrap() error { return e.err }

// stderrOf returns the lines that a failed command printed last.
func stderrOf(err error) []string {
	var failed *commandError
	if errors.As(err, &failed) {
		return failed.stderr
	}
	return nil
}

// lines is a writer that splits what it gets and remembers the last lines.
type lines struct {
	each func(string)
	rest []byte
	last []string
}

// remembered is how many lines an error shows at most.
const remembered = 40

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.rest = rest
		l.add(string(line))
	}
}

func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.add(string(l.rest))
		l.rest = nil
	}
}

func (l *lines) add(line string) {
	l.last = append(l.last, line)
	if len(l.last) > remembered {
		l.last = l.last[1:]
	}
	l.each(line)
}

// unpinned are variables that would change what a build gives.
var unpinned = []string{"GOFLAGS", "GOWORK", "GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT", "GODEBUG", "GOTOOLCHAIN", "GO111MODULE",
	"CGO_ENABLED", "CGO_CFLAGS", "CGO_CPPFLAGS", "CGO_CXXFLAGS", "CGO_LDFLAGS", "GCCGO", "SOURCE_DATE_EPOCH", "GOGC", "GOMEMLIMIT", "LC_ALL", "LANG"}

// tunedGC lets the compiler and the linker collect only when they come near their
// share of the memory: half of it, divided by the processors. They live for
// seconds; not collecting saves 7 % of a link of kube.
func tunedGC() []string {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil
	}
	share := uint64(info.Totalram) * uint64(info.Unit) / 2 / uint64(runtime.NumCPU())
	return []string{"GOGC=off", fmt.Sprintf("GOMEMLIMIT=%d", max(share, 1<<30))}
}

// goEnv is the environment of the go command: the user's, for the proxy and the
// caches, with all that changes the result pinned.
func (b *Builder) goEnv(cgo bool) []string {
	env := slices.Clone(b.env)
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		replaced := slices.ContainsFunc(b.env, func(own string) bool { return strings.HasPrefix(own, name+"=") })
		if !replaced && !slices.Contains(unpinned, name) {
			env = append(env, entry)
		}
	}
	enabled := "0"
	if cgo {
		enabled = "1"
	}
	env = append(env, tunedGC()...)
	return append(env, "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local", "GO111MODULE=on", "GOAMD64=v1", "GOARM64=v8.0", "LC_ALL=C", "CGO_ENABLED="+enabled)
}

// offline is the environment for compiling a set: no module is fetched any more,
// and temporary files are where the next build removes them if this one is killed.
func (b *Builder) offline(set *Set) []string {
	dir := b.work("tmp", "go")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return append(b.goEnv(set.Config.CGO), "GOPROXY=off") // the go command will say what is wrong
	}
	return append(b.goEnv(set.Config.CGO), "GOPROXY=off", "GOTMPDIR="+dir)
}

// firstLine returns the first line that a command prints, or nothing.
func firstLine(ctx context.Context, args ...string) string {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return ""
	}
	scanner := bufio.NewScanner(io.LimitReader(bytes.NewReader(out), 4096))
	scanner.Scan()
	return scanner.Text()
}

// discard is for steps that are part of a measurement.
var discard = progress.NewPlain(io.Discard)
