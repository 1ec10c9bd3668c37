// Package gvisor starts real gVisor sandboxes for the scenarios beside it.
//
// A sandbox has a root directory of its own, served over 9p (or, with
// OverlayRoot, in gVisor's default overlay), cgroup v1 at /sys/fs/cgroup, all
// capabilities, and a network of its own with nothing but loopback. The root
// holds only what the test puts there and the program inside.
//
// Whatever happens, nothing stays: the sandbox is deleted, and what runsc leaves
// mounted in its state directory is unmounted.
package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// programsVariable names the folder that go tool mage test:sandbox fills: runsc,
// inside, and the programs of the node.
const programsVariable = "K3S9P_SANDBOX_PROGRAMS"

// Program is the path, here, of a program that the sandbox may get.
func Program(name string) string { return filepath.Join(os.Getenv(programsVariable), name) }

// Root is how the root of a sandbox is served.
type Root string

const (
	NinePRoot   Root = "--overlay2=none"
	OverlayRoot Root = "--overlay2=root:memory"
)

// Sandbox is a running gVisor sandbox.
type Sandbox struct {
	t      *testing.T
	id     string
	dir    string // holds everything below
	rootfs string
	state  string
	root   Root
	runsc  string
}

// Start boots a sandbox with the given files: path in the sandbox → file here, or
// text after a leading "=".
func Start(t *testing.T, root Root, files map[string]string) *Sandbox {
	t.Helper()
	Require(t)
	dir := t.TempDir()
	s := &Sandbox{t: t, id: fmt.Sprint(idPrefix(), time.Now().UnixNano()), dir: dir, root: root, runsc: Program("runsc"),
		rootfs: filepath.Join(dir, "bundle", "rootfs"), state: filepath.Join(dir, "state")}
	running.Lock()
	running.sandboxes = append(running.sandboxes, s)
	running.Unlock()
	t.Cleanup(s.stop)
	for _, name := range []string{"dev", "proc", "sys", "tmp", "run", "root", "etc", "var/lib", "var/log/pods"} {
		s.must(os.MkdirAll(filepath.Join(s.rootfs, name), 0o755))
	}
	s.must(os.MkdirAll(s.state, 0o700))
	s.put("/inside", Program("inside"))
	for path, from := range files {
		s.put(path, from)
	}
	s.writeConfig()
	s.boot()
	return s
}

// Require skips a test that go tool mage test:sandbox has not started: that
// builds gVisor and the programs, and says where they are.
func Require(t *testing.T) {
	t.Helper()
	if os.Getenv(programsVariable) == "" {
		t.Skip("go tool mage test:sandbox runs this, as root")
	}
}

// put copies a file into the root before the sandbox starts.
func (s *Sandbox) put(path, from string) {
	s.t.Helper()
	target := filepath.Join(s.rootfs, path)
	s.must(os.MkdirAll(filepath.Dir(target), 0o755))
	if text, ok := strings.CutPrefix(from, "="); ok {
		s.must(os.WriteFile(target, []byte(text), 0o644))
		return
	}
	in, err := os.Open(from)
	s.must(err)
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE, 0o755)
	s.must(err)
	_, err = io.Copy(out, in)
	s.must(errors.Join(err, out.Close()))
}

// writeConfig writes the OCI bundle (runtime-spec, config.md).
func (s *Sandbox) writeConfig() {
	s.t.Helper()
	all := capabilities()
	spec := specs.Spec{
		Version:  specs.Version,
		Hostname: "sandbox",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/inside", "init"}, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: all, Effective: all, Inheritable: all, Permitted: all},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 20}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
		}},
	}
	data, err := json.Marshal(spec)
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.dir, "bundle", "config.json"), data, 0o644))
}

// capabilities are the names of all that this kernel has, at most those of Linux 5.9.
func capabilities() []string {
	names := []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
		"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
		"SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL",
		"SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"}
	for i, name := range names {
		names[i] = "CAP_" + name
	}
	return names
}

func (s *Sandbox) boot() {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, "runsc.log"))
	s.must(err)
	defer log.Close()
	cmd := s.command(context.Background(), "run", "--bundle", filepath.Join(s.dir, "bundle"), "--detach", s.id)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		s.t.Fatalf("runsc run: %v\n%s", err, text)
	}
	if got, want := s.rootType(), map[Root]string{NinePRoot: "9p", OverlayRoot: "overlay"}[s.root]; got != want {
		s.t.Fatalf("the root of the sandbox is %s, not %s", got, want)
	}
}

// rootType is the type of / in the sandbox's mount table.
func (s *Sandbox) rootType() string {
	s.t.Helper()
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(s.Read("/proc/self/mountinfo")), mountinfo.SingleEntryFilter("/"))
	s.must(err)
	if len(mounts) != 1 {
		s.t.Fatalf("the mount table of the sandbox has %d roots", len(mounts))
	}
	return mounts[0].FSType
}

func (s *Sandbox) command(ctx context.Context, args ...string) *exec.Cmd {
	flags := []string{"--root", s.state, "--platform=systrap", "--net-raw", "--network=none", "--ignore-cgroups", string(s.root)}
	cmd := exec.CommandContext(ctx, s.runsc, append(flags, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Exec runs a program in the sandbox and returns what it printed, on both
// outputs. The error is that of the program, or of the context.
func (s *Sandbox) Exec(ctx context.Context, args ...string) (string, error) {
	var output bytes.Buffer
	cmd := s.command(ctx, append([]string{"exec", s.id}, args...)...)
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return output.String(), err
}

// Must runs a program that has to succeed within 30 s.
func (s *Sandbox) Must(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	output, err := s.Exec(ctx, args...)
	if err != nil {
		s.t.Fatalf("%v in the sandbox: %v\n%s", args, err, output)
	}
	return output
}

// Read returns a file of the sandbox.
func (s *Sandbox) Read(path string) string {
	s.t.Helper()
	return s.Must("/inside", "read", path)
}

// Background runs a program in the sandbox until that ends. Its output is what
// the returned function gives, which can be called at any time.
func (s *Sandbox) Background(args ...string) *Process {
	s.t.Helper()
	name := filepath.Join(s.dir, filepath.Base(args[0])+".log")
	log, err := os.Create(name)
	s.must(err)
	cmd := s.command(context.Background(), append([]string{"exec", s.id}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	s.must(cmd.Start())
	log.Close()
	p := &Process{log: name, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	return p
}

// Process is a program that runs in the sandbox.
type Process struct {
	log  string
	done chan struct{}
	err  error
}

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Output is what the process printed so far.
func (p *Process) Output() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Await waits for a condition.
func (s *Sandbox) Await(what string, within time.Duration, condition func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(within); !condition(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s did not happen within %v", what, within)
		}
	}
}

// stop removes the sandbox and, if the test failed, keeps the logs.
func (s *Sandbox) stop() {
	running.Lock()
	running.sandboxes = slices.DeleteFunc(running.sandboxes, func(other *Sandbox) bool { return other == s })
	running.Unlock()
	if err := s.remove(); err != nil {
		s.t.Error(err)
	}
	if s.t.Failed() {
		s.keepLogs()
	}
}

// remove deletes the sandbox and unmounts what runsc leaves: its network
// namespace, in the state directory.
func (s *Sandbox) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var failures error
	if out, err := s.command(ctx, "delete", "--force", s.id).CombinedOutput(); err != nil && !strings.Contains(string(out), "does not exist") {
		failures = fmt.Errorf("delete the sandbox: %w\n%s", err, out)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.dir))
	failures = errors.Join(failures, err)
	for _, mount := range mounts {
		if err := unix.Unmount(mount.Mountpoint, unix.MNT_DETACH); err != nil {
			failures = errors.Join(failures, fmt.Errorf("unmount %s: %w", mount.Mountpoint, err))
		}
	}
	return failures
}

func (s *Sandbox) keepLogs() {
	kept, err := os.MkdirTemp("", "k3s9p-sandbox-")
	if err != nil {
		s.t.Error(err)
		return
	}
	logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
	for _, log := range logs {
		if data, err := os.ReadFile(log); err == nil {
			_ = os.WriteFile(filepath.Join(kept, filepath.Base(log)), data, 0o644)
		}
	}
	s.t.Logf("the logs of the sandbox are in %s", kept)
}

func (s *Sandbox) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}
