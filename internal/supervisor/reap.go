package supervisor

import (
	"context"
	"os"
	"os/exec"
	"os/signal"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Reap collects the processes that programs leave behind when they end, such as
// containerd's shims, until ctx ends: they become children of this process
// (PR_SET_CHILD_SUBREAPER, prctl(2)). The first process of a sandbox is often one
// that collects nothing, and a process that nobody collects stays for good.
//
// Other code of this process that starts processes meanwhile does so in
// [Supervisor.Apart].
func (s *Supervisor) Reap(ctx context.Context) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		s.log.Info("what programs leave behind is left to process 1", "error", err)
		return
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
			s.reap()
		}
	}
}

// Apart calls f, whose child processes are its own to wait for.
func (s *Supervisor) Apart(f func() error) error {
	s.reaping.RLock()
	defer s.reaping.RUnlock()
	return f()
}

// Run runs a program that is none of the node's until it has ended. Begun is called in
// between.
func (s *Supervisor) Run(cmd *exec.Cmd, begun func()) error {
	err := s.Apart(func() error {
		err := cmd.Start()
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.guests[cmd.Process.Pid] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	begun()
	err = cmd.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.guests, cmd.Process.Pid)
	return err
}

func (s *Supervisor) reap() {
	s.reaping.Lock()
	defer s.reaping.Unlock()
	for _, pid := range endedChildren() {
		if !s.owns(pid) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// owns reports whether a process is a program that somebody waits for.
func (s *Supervisor) owns(pid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.children {
		if c.state.PID == pid {
			return true
		}
	}
	return s.guests[pid]
}

// endedChildren lists the children of this process that have ended and that nobody
// has waited for.
func endedChildren() []int {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil
	}
	var found []int
	for _, process := range all {
		if stat, err := process.Stat(); err == nil && stat.State == "Z" && stat.PPID == os.Getpid() {
			found = append(found, stat.PID)
		}
	}
	return found
}
