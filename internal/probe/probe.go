// Package probe finds out what this machine can do, by doing it: it mounts an
// overlay and deletes a file in it, adds a rule, opens the device.
//
// What could hang, end the program or change the machine runs in a child process
// with a deadline, in namespaces of its own that end with it. A program that
// probes calls [Init] first, because the child is the same program.
//
// A probe answers with nil, with the error that a node would meet, or with an
// error that wraps [ErrUnclear]: then it says nothing about the machine. Nothing
// is inferred from the version of a kernel: sandboxes state one that they do not
// have.
package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/reexec"
	"golang.org/x/sys/unix"
)

// ErrUnclear is wrapped by the error of a probe that could not be made: it was
// refused a namespace, ran out of time, or ended without an answer.
var ErrUnclear = errors.New("could not tell")

// errKilled is wrapped, with ErrUnclear, by the error about a child that somebody
// else has killed: for the probe of memory limits that is the answer.
var errKilled = errors.New("killed")

// Unprivileged reports whether a probe was refused because this process is not
// root: what root meets is another question.
func Unprivileged(err error) bool { return errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 }

// limit is how long a child may take. The slowest probe, a FUSE program that
// starts in gVisor, takes about a second.
const limit = 10 * time.Second

// childName is the name that the child process is started under.
const childName = "k3s9p-probe"

// The last line that a child prints is its answer: one of these, the latter two
// with the error behind it.
const (
	fine    = "probe: fine"
	refused = "probe: refused: "
	unclear = "probe: unclear: "
)

// children are the probes that run in a child process, by name.
var children = map[string]func(args []string) error{
	"overlay":          func(args []string) error { return overlay(args[0]) },
	"overlay-tmpfs":    func(args []string) error { return overlayOnTmpfs(args[0]) },
	"fuse-overlay":     func(args []string) error { return fuseOverlay(args[0]) },
	"shared-memory":    func(args []string) error { return sharedMemory(args[0]) },
	"socket":           func(args []string) error { return socket(args[0]) },
	"masquerade-pods":  func(args []string) error { return backendOf(args[0], masqueradedPacket) },
	"proxy-pods":       func(args []string) error { return backendOf(args[0], proxiedPackets) },
	"kube-proxy":       func(args []string) error { return kubeProxyPackets(args[0]) },
	"bridge":           func([]string) error { return bridge() },
	"bridged":          func([]string) error { return bridged() },
	"raw-udp":          func([]string) error { return rawUDP() },
	"drop-bridged":     func(args []string) error { return backendOf(args[0], dropBridged) },
	"hairpin":          func([]string) error { return hairpinOption() },
	"link-kind":        func([]string) error { return linkKind() },
	"preferred-source": func([]string) error { return preferredSource() },
	"only-cgroup-v1":   func(args []string) error { return onlyCgroupV1(args[0]) },
	"cgroup-files":     func(args []string) error { return mountedCgroupFiles(args[0]) },
	"memory":           func(args []string) error { return use(args[0]) },
	"privileges":       func([]string) error { return powers() },
	"own-cgroups":      func([]string) error { return ownCgroups() },
	"tun":              func([]string) error { return tun() },
	"oom-score":        func([]string) error { return oomScore() },
	"tmpfs-options":    func(args []string) error { return tmpfsOptions(args[0]) },
}

func init() { reexec.Register(childName, child) }

// Init runs the probe that this process was started for, if it was, and ends it.
func Init() {
	if reexec.Init() {
		os.Exit(0)
	}
}

func child() {
	// It is lost where the ids of this process were mapped by others (package userns):
	// who gets capabilities with an exec loses it (prctl(2)).
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	err := children[os.Args[1]](os.Args[2:])
	switch {
	case err == nil:
		fmt.Println(fine)
	case errors.Is(err, ErrUnclear), Unprivileged(err):
		fmt.Println(unclear + oneLine([]byte(err.Error())))
	default:
		fmt.Println(refused + oneLine([]byte(err.Error())))
	}
}

// isolated runs a probe in a child process, in namespaces of its own (clone flags,
// as of unshare(2)); a mount namespace passes nothing on to others.
func isolated(ctx context.Context, flags uintptr, name string, args ...string) error {
	start := func(cmd *exec.Cmd) error {
		cmd.SysProcAttr.Unshareflags = flags
		return cmd.Start()
	}
	return inChild(ctx, start, name, args...)
}

// inChild runs a probe in a child process, which a function starts.
func inChild(ctx context.Context, start func(*exec.Cmd) error, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := reexec.Command(append([]string{childName, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The death signal is bound to this thread (golang.org/issue/27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := start(cmd)
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("%w: start a probe in namespaces of its own: %w", ErrUnclear, err)
	}
	select {
	case err := <-ended:
		return answer(name, output.String(), err)
	case <-ctx.Done():
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	select { // a process that waits for a filesystem may not end when it is killed
	case <-ended:
		return fmt.Errorf("%w: the probe %s gave no answer: %w", ErrUnclear, name, ctx.Err())
	case <-time.After(3 * time.Second):
		return fmt.Errorf("%w: the probe %s hangs, also when it is killed", ErrUnclear, name)
	}
}

// answer reads what a child printed.
func answer(name, output string, err error) error {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	last := lines[len(lines)-1]
	switch {
	case err == nil && last == fine:
		return nil
	case err == nil && strings.HasPrefix(last, unclear):
		return fmt.Errorf("%w: %s", ErrUnclear, strings.TrimPrefix(last, unclear))
	case err == nil && strings.HasPrefix(last, refused):
		return errors.New(strings.TrimPrefix(last, refused))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return fmt.Errorf("%w: the probe %s was %w", ErrUnclear, name, errKilled)
	}
	return fmt.Errorf("%w: the probe %s ended without an answer (%v): %.200s", ErrUnclear, name, err, oneLine([]byte(output)))
}
