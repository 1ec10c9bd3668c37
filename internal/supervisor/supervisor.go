// Package supervisor keeps the programs of a node running: it starts them, keeps
// their logs, starts what dies anew, and stops all of them in order.
//
// It is for programs that stay in the foreground. The programs end when the
// supervisor does, also when it is killed.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gopkg.in/natefinch/lumberjack.v2"
)

// Program is what is to run.
type Program struct {
	Name string
	Args []string // with the path of the executable
	Env  []string // complete
	// Grace is how long it may take to end after SIGTERM; then it is killed.
	Grace time.Duration
}

// State is what a program is doing.
type State struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"` // 0 while it does not run
	Since    time.Time `json:"since"`         // of its last start
	Restarts int       `json:"restarts"`
	// LastExit says how it ended the last time, if it did.
	LastExit string `json:"lastExit,omitempty"`
	Log      string `json:"log"`
}

// The logs of a program: so many files of so many megabytes, the newest without a
// number.
const (
	logMegabytes = 10
	logFiles     = 3
)

// The wait before a restart doubles from the first to the second; a program that
// ran for the third begins anew.
const (
	firstBackoff = time.Second
	lastBackoff  = 30 * time.Second
	calm         = time.Minute
)

// Supervisor runs programs.
type Supervisor struct {
	dir     string // of the logs
	log     *slog.Logger
	changed func([]State)

	reaping sync.RWMutex // held while somebody else waits for children

	mu       sync.Mutex
	children []*child     // in the order of their start
	guests   map[int]bool // processes that are none of the node's: see Run
	keep     bool         // what dies is started anew
	stopping bool
}

type child struct {
	Program
	state   State // guarded by the supervisor's mu
	process *os.Process
	stop    chan struct{} // closed: do not start it again
	ended   chan struct{} // closed: it is over
	out     *lumberjack.Logger
}

// New returns a supervisor that keeps logs in dir and calls changed, if it is not
// nil, whenever a program starts or ends.
func New(dir string, log *slog.Logger, changed func([]State)) *Supervisor {
	return &Supervisor{dir: dir, log: log, changed: changed, guests: make(map[int]bool)}
}

// Start starts a program.
func (s *Supervisor) Start(p Program) error {
	c := &child{Program: p, stop: make(chan struct{}), ended: make(chan struct{}),
		out: &lumberjack.Logger{Filename: filepath.Join(s.dir, p.Name+".log"), MaxSize: logMegabytes, MaxBackups: logFiles - 1}}
	c.state = State{Name: p.Name, Log: c.out.Filename}
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		return fmt.Errorf("start %s: the node is being stopped", p.Name)
	}
	s.children = append(s.children, c)
	s.mu.Unlock()
	started := make(chan error, 1)
	go s.run(c, started)
	return <-started
}

// Keep says that from now on what dies is started anew. Until then a program that
// ends is an error of who waits for it.
func (s *Supervisor) Keep() {
	s.mu.Lock()
	s.keep = true
	s.mu.Unlock()
}

// States returns what the programs are doing, in the order of their start.
func (s *Supervisor) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, len(s.children))
	for i, c := range s.children {
		states[i] = c.state
	}
	return states
}

// EndedError says that a program ended that somebody waits for.
type EndedError struct {
	Name, Exit, Log string
	Tail            []string // the last lines of its log
}

func (e *EndedError) Error() string {
	return fmt.Sprintf("%s ended (%s); the end of %s:\n  %s", e.Name, e.Exit, e.Log, strings.Join(e.Tail, "\n  "))
}

// Await waits until a condition holds, as long as the named programs run. The
// error names what is missing: the condition's own last error.
func (s *Supervisor) Await(ctx context.Context, condition func(context.Context) error, names ...string) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		if err := s.ended(names); err != nil {
			return err
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := condition(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), last)
		case <-ticker.C:
		}
	}
}

// ended returns an error if one of the named programs has ended and is not started
// anew. One that is just being started has not.
func (s *Supervisor) ended(names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.children {
		if slices.Contains(names, c.Name) && c.state.PID == 0 && c.state.LastExit != "" && !s.keep {
			return &EndedError{Name: c.Name, Exit: c.state.LastExit, Log: c.state.Log, Tail: tail(c.state.Log, 15)}
		}
	}
	return nil
}

// Stop ends a program with SIGTERM, and with SIGKILL after its grace period.
func (s *Supervisor) Stop(name string) {
	s.mu.Lock()
	var found *child
	for _, c := range s.children {
		if c.Name == name {
			found = c
		}
	}
	s.mu.Unlock()
	if found != nil {
		s.end(found)
	}
}

// StopAll ends all programs, the last one first. Nothing is started after it.
func (s *Supervisor) StopAll() {
	s.mu.Lock()
	s.stopping = true
	children := slices.Clone(s.children)
	s.mu.Unlock()
	for _, c := range slices.Backward(children) {
		s.end(c)
	}
}

func (s *Supervisor) end(c *child) {
	s.mu.Lock()
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	process := c.process
	s.mu.Unlock()
	if process != nil {
		_ = process.Signal(unix.SIGTERM)
	}
	select {
	case <-c.ended:
		return
	case <-time.After(max(c.Grace, time.Second)):
	}
	s.mu.Lock()
	process = c.process
	s.mu.Unlock()
	if process != nil {
		s.log.Warn("killing a program that did not end", "program", c.Name)
		_ = process.Kill()
	}
	<-c.ended
}

// run starts a program, again and again, until it is told to stop.
func (s *Supervisor) run(c *child, started chan<- error) {
	defer close(c.ended)
	defer c.out.Close()
	// A program ends with the thread that started it (prctl(2), PR_SET_PDEATHSIG;
	// golang.org/issue/27505), so this one stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	backoff := firstBackoff
	for first := true; ; first = false {
		begin := time.Now()
		cmd, err := s.start(c)
		if first {
			started <- err
		}
		if err == nil {
			err = cmd.Wait()
		}
		exit := "exit status 0"
		if err != nil {
			exit = err.Error()
		}
		s.mu.Lock()
		c.process, c.state.PID, c.state.LastExit = nil, 0, exit
		again := s.keep && !s.stopping
		s.mu.Unlock()
		s.notify()
		select {
		case <-c.stop:
			return
		default:
		}
		if !again {
			return
		}
		if time.Since(begin) > calm {
			backoff = firstBackoff
		}
		s.log.Error("a program ended and is started anew", "program", c.Name, "exit", exit, "after", time.Since(begin).Round(time.Millisecond), "in", backoff)
		fmt.Fprintf(c.out, "--- k3s9p: %s ended (%s); started anew in %v\n", c.Name, exit, backoff)
		select {
		case <-c.stop:
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
		s.mu.Lock()
		c.state.Restarts++
		s.mu.Unlock()
	}
}

func (s *Supervisor) start(c *child) (*exec.Cmd, error) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = c.Env
	out := lossy{c.out}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	cmd.WaitDelay = time.Second // children of a program may hold its outputs open
	s.mu.Lock()
	select {
	case <-c.stop: // it was told to while this was on its way
		s.mu.Unlock()
		return nil, errors.New("stopped before it started")
	default:
	}
	err := cmd.Start()
	if err == nil {
		c.process = cmd.Process
		c.state.PID, c.state.Since = cmd.Process.Pid, time.Now()
	}
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	s.notify()
	return cmd, nil
}

// lossy drops what cannot be written. os/exec answers an error, such as that of a full
// disk, by closing the pipe, and the program would end at the next line that it writes
// (SIGPIPE).
type lossy struct{ io.Writer }

func (l lossy) Write(p []byte) (int, error) {
	_, _ = l.Writer.Write(p)
	return len(p), nil
}

func (s *Supervisor) notify() {
	if s.changed != nil {
		s.changed(s.States())
	}
}

// tail returns the last lines of a file, at most n.
func tail(name string, n int) []string {
	file, err := os.Open(name)
	if err != nil {
		return []string{err.Error()}
	}
	defer file.Close()
	const window = 32 << 10
	if info, err := file.Stat(); err == nil && info.Size() > window {
		_, _ = file.Seek(-window, io.SeekEnd)
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return []string{err.Error()}
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[max(0, len(lines)-n):]
}
