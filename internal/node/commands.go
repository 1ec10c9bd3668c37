package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"k3s9p/internal/inside"
)

// ErrNotRunning is wrapped by the error about a node that runs no commands.
var ErrNotRunning = inside.ErrNobody

// RunCtr runs ctr where the node's programs run, with the standard streams of this process
// and the signals that come, and returns its exit status: what ctr mounts, and its named
// pipes, have to be there where containerd is.
func RunCtr(p Paths, args []string, signals <-chan os.Signal) (int, error) {
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	r := inside.Request{Args: append([]string{"ctr"}, args...), Dir: dir, Term: os.Getenv("TERM")}
	return inside.Run(p.outside(p.commands()), r, [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, signals)
}

// serveCommands runs ctr for who is outside, until the node ends.
func (n *Node) serveCommands() {
	if err := os.Remove(n.paths.commands()); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.log.Warn("ctr cannot run containers", "error", err)
		return
	}
	listener, err := inside.Listen(n.paths.commands())
	if err != nil {
		n.log.Warn("ctr cannot run containers", "error", err)
		return
	}
	inside.Serve(listener, n.runCommand)
}

func (n *Node) runCommand(r inside.Request, streams [3]*os.File, signals <-chan os.Signal) (int, error) {
	if len(r.Args) == 0 || r.Args[0] != "ctr" {
		return 0, fmt.Errorf("the node runs ctr for others, and nothing else: %q", r.Args)
	}
	c := n.plan.Settings.Containerd
	args := append([]string{"--address=" + c.Socket(), "--namespace=k8s.io"}, r.Args[1:]...)
	cmd := exec.Command(n.program("ctr"), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams[0], streams[1], streams[2]
	cmd.Env = append(n.pullEnvironment(), "CONTAINERD_SNAPSHOTTER="+c.Snapshotter, "TERM="+r.Term)
	if _, err := os.Stat(r.Dir); err == nil {
		cmd.Dir = r.Dir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := n.supervisor.Run(cmd, func() {
		go func() {
			for s := range signals {
				_ = cmd.Process.Signal(s)
			}
			_ = cmd.Process.Signal(unix.SIGHUP) // nobody waits for it any more, if it has not ended
		}()
	})
	var ended *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case !errors.As(err, &ended):
		return 0, fmt.Errorf("run ctr: %w", err)
	}
	if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil // as a shell says it
	}
	return ended.ExitCode(), nil
}
