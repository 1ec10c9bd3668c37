// Package gvisor starts real gVisor sandboxes for the scenarios beside it.
//
// A sandbox has a root of its own, made of a small Debian and the programs that a
// test asks for, served over 9p or in gVisor's default overlay; cgroup v1 at
// /sys/fs/cgroup; all capabilities; and a network namespace with eth0, whose other
// end is in a second namespace.
//
// A run without a gVisor gets a machine of its own on this kernel in its place: see
// [Native].
//
// All that a sandbox has on the machine is below one directory, and goes with it:
// see package leftover.
package gvisor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/leftover"
	"k3s9p/internal/workdir"
)

// Program is the path, here, of a file that the sandbox may get: see package contract.
func Program(name string) string { return run.Program(name) }

// Reports is the directory that the reports of this run go to.
func Reports() string { return run.Reports }

// Name is how the gVisor of this run is called: today, or YYYYMM; or native.
func Name() string { return run.GVisor }

// Bench is what a run that measures is told.
func Bench() contract.Bench { return run.Bench }

// Kills is how many commands are to be killed.
func Kills() int { return run.Kills }

// Root is how the root of a sandbox is served.
type Root string

const (
	NinePRoot Root = "--overlay2=none"
	// OverlayRoot is gVisor's default.
	OverlayRoot Root = "--overlay2=root:self"
)

// Options describe a sandbox.
type Options struct {
	Root  Root              // NinePRoot if empty
	Files map[string]string // path in the sandbox → file here, or text after a leading "="
	// DiskGiB, if not 0, puts the root on a disk of that size of its own, of which
	// AvailableMiB are left when the sandbox starts.
	DiskGiB, AvailableMiB int
	// NoCgroups leaves /sys/fs/cgroup an empty directory, as it is where the OCI
	// specification asks for no mount there.
	NoCgroups bool
	// MemoryMiB, if not 0, is how much memory the sandbox has: a cgroup limits it, and gVisor
	// shows that as the memory of the machine, as for docker run --memory.
	MemoryMiB int64
	// Docker makes the sandbox what docker run --runtime=runsc makes without further
	// options: see [asDocker].
	Docker bool
	// User is who runs in the sandbox, with [Home]; 0 is root.
	User uint32
	// Beside, if not nil, is another sandbox that this one is on one network with.
	Beside *Sandbox
	// SilentAt, if not "", is where the sandbox has a filesystem that answers no statfs
	// once Silence was called.
	SilentAt string
}

// Sandbox is a running gVisor sandbox.
type Sandbox struct {
	t        *testing.T
	id       string
	dir      string // holds everything below
	rootfs   string
	state    string
	outside  string // the network namespace on the other end of eth0
	root     Root
	runsc    string
	docker   bool
	cgroups  bool // it has some on this machine
	user     uint32
	silent   *silent
	programs int // started in the background
}

// searchPath is that of a process in the sandbox.
const searchPath = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Start boots a sandbox.
func Start(t *testing.T, options Options) *Sandbox {
	t.Helper()
	Require(t)
	s := newSandbox(t, options)
	t.Cleanup(s.stop)
	s.must(s.makeRoot(options))
	if options.Beside == nil {
		s.must(makeNetwork(s.dir))
	} else {
		s.must(makeNetworkBeside(s.dir, options.Beside.outside))
	}
	if options.SilentAt != "" {
		s.must(s.mountSilent())
	}
	s.writeConfig(options)
	s.boot()
	return s
}

func newSandbox(t *testing.T, options Options) *Sandbox {
	run.Lock()
	defer run.Unlock()
	run.started++
	s := &Sandbox{t: t, root: options.Root, docker: options.Docker, cgroups: options.MemoryMiB != 0, user: options.User, runsc: runsc()}
	if s.root == "" {
		s.root = NinePRoot
	}
	s.id = fmt.Sprintf("k3s9p-%d-%d", os.Getpid(), run.started)
	s.dir = filepath.Join(run.dir, strconv.Itoa(run.started))
	s.outside = s.namespace("outside")
	if options.Beside != nil {
		s.outside = options.Beside.outside
	}
	s.rootfs, s.state = filepath.Join(s.dir, "disk", "rootfs"), filepath.Join(s.dir, leftover.State)
	s.must(os.MkdirAll(s.state, 0o700))
	return s
}

// Require skips a test that go tool mage test:sandbox has not started: that
// builds gVisor and the programs, and says where they are.
func Require(t *testing.T) {
	t.Helper()
	if _, ok := contract.Given(); !ok {
		t.Skip("go tool mage test:sandbox runs this, as root")
	}
}

// writeConfig writes the OCI bundle (runtime-spec, config.md).
func (s *Sandbox) writeConfig(options Options) {
	s.t.Helper()
	all := capabilities()
	spec := specs.Spec{
		Version:  specs.Version,
		Hostname: "sandbox",
		Root:     &specs.Root{Path: s.rootfs},
		Process: &specs.Process{
			Args: []string{inside, "init"}, Cwd: "/", Env: []string{"PATH=" + searchPath},
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
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			{Type: specs.NetworkNamespace, Path: s.namespace("inside")},
		}},
	}
	if options.NoCgroups {
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" })
	}
	if options.MemoryMiB != 0 {
		limit := options.MemoryMiB << 20
		spec.Linux.CgroupsPath, spec.Linux.Resources = "/"+s.id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		s.must(leftover.NoteCgroup(s.dir, s.id))
	}
	if Native() {
		asMachine(&spec, s.id)
		s.must(leftover.NoteCgroup(s.dir, s.id))
	}
	if options.Docker {
		asDocker(&spec, options.User)
	}
	if s.silent != nil {
		spec.Mounts = append(spec.Mounts, s.silent.mount(options.SilentAt))
	}
	spec.Process.User = specs.User{UID: options.User, GID: options.User}
	data, err := json.Marshal(spec)
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.dir, "config.json"), data, 0o644))
}

// capabilities are the names of all that this kernel has, at most those of Linux 5.9, in the
// order of their numbers.
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

// startLimit is how long a sandbox may take to start.
const startLimit = 10 * time.Second

func (s *Sandbox) boot() {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, "runsc.log"))
	s.must(err)
	defer log.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	start := time.Now()
	cmd := s.command(ctx, "run", "--bundle", s.dir, "--detach", s.id)
	cmd.Stdout, cmd.Stderr = log, log
	if err := leftover.Run(s.dir, cmd); err != nil {
		s.t.Fatalf("start a sandbox: %s run: %v; its log:\n%s", filepath.Base(s.runsc), err, s.log("runsc.log"))
	}
	if took := time.Since(start); took > startLimit {
		s.t.Errorf("the sandbox took %v to start, more than %v", took, startLimit)
	}
	if got, want := s.rootType(), map[Root]string{NinePRoot: "9p", OverlayRoot: "overlay"}[s.root]; got != want && !Native() {
		s.t.Fatalf("the root of the sandbox is %s, not %s", got, want)
	}
}

func (s *Sandbox) log(name string) string {
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(data))
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
	flags := []string{"--root", s.state}
	if !Native() {
		flags = append(flags, s.runscFlags()...)
	}
	cmd := exec.CommandContext(ctx, s.runsc, append(flags, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (s *Sandbox) runscFlags() []string {
	flags := []string{"--platform=systrap", string(s.root)}
	if !s.cgroups {
		flags = append(flags, "--ignore-cgroups")
	}
	if !s.docker {
		flags = append(flags, "--net-raw")
	}
	if strings.Contains(knownFlags(), "-gofer-network-namespace") {
		flags = append(flags, "--gofer-network-namespace=new") // the other choice leaves a mount in the state directory
	}
	return flags
}

// runsc is the gVisor of this run, or what runs containers without one.
func runsc() string {
	if Native() {
		return Program(contract.Runc)
	}
	return Program(run.Runsc)
}

// Native reports whether the sandboxes of this run are none, but machines of their own on
// this kernel: see [asMachine].
func Native() bool { return run.GVisor == contract.Native }

// Distribution is the one that is tested.
func Distribution() string { return cmp.Or(run.Distribution, "kubernetes") }

// Old reports whether the gVisor is not the newest one.
func Old() bool { return !Native() && filepath.Base(runsc()) != "runsc" }

// knownFlags are those that it knows: older ones lack some.
var knownFlags = sync.OnceValue(func() string {
	output, _ := exec.Command(runsc(), "flags").CombinedOutput()
	return string(output)
})

// execLimit is how long a program in the sandbox may take at most: what waits for one
// has a shorter limit of its own.
const execLimit = 5 * time.Minute

// exec is runsc exec of a program in the sandbox, by its user, with further flags.
func (s *Sandbox) exec(ctx context.Context, flags []string, args ...string) *exec.Cmd {
	all := append([]string{"exec", "--env=PATH=" + searchPath}, flags...)
	if s.user != 0 {
		all = append(all, fmt.Sprintf("--user=%d:%d", s.user, s.user), "--env=HOME="+Home)
	}
	return s.command(ctx, append(append(all, s.id), args...)...)
}

// Exec runs a program in the sandbox and returns what it printed, on both
// outputs. The error is that of the program, or of the context.
func (s *Sandbox) Exec(ctx context.Context, args ...string) (string, error) {
	var output bytes.Buffer
	err := s.run(ctx, &output, &output, args...)
	return output.String(), err
}

// Output runs a program in the sandbox and returns what it printed on its standard output,
// to be read by a program: what is on the other one is in the error, if there is one.
func (s *Sandbox) Output(ctx context.Context, args ...string) (string, error) {
	var output, complaints bytes.Buffer
	err := s.run(ctx, &output, &complaints, args...)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, &complaints)
	}
	return output.String(), err
}

func (s *Sandbox) run(ctx context.Context, stdout, stderr io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, execLimit)
	defer cancel()
	cmd := s.exec(ctx, nil, args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := leftover.Run(s.dir, cmd)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}

// Must runs a program that has to succeed within a minute: some probe all of the machine,
// or walk through all of its files.
func (s *Sandbox) Must(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
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
	return s.Must("cat", path)
}

// Write makes a file in the running sandbox: one that is written from outside may
// not be seen inside.
func (s *Sandbox) Write(path, content string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := s.exec(ctx, nil, "sh", "-c", `t=$(dirname "$0")/.tmp; cat > "$t" && mv "$t" "$0"`, path)
	var output bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(content), &output, &output
	if err := leftover.Run(s.dir, cmd); err != nil {
		s.t.Fatalf("write %s in the sandbox: %v\n%s", path, err, &output)
	}
}

// Background runs a program in the sandbox until that ends or is told to.
func (s *Sandbox) Background(args ...string) *Process {
	s.t.Helper()
	s.programs++
	name := filepath.Join(s.dir, fmt.Sprintf("%d-%s.log", s.programs, filepath.Base(args[0])))
	log, err := os.Create(name)
	s.must(err)
	defer log.Close()
	pidFile := strings.TrimSuffix(name, ".log") + ".pid"
	flag := "--internal-pid-file="
	if Native() {
		flag = "--pid-file="
	}
	cmd := s.exec(context.Background(), []string{flag + pidFile}, args...)
	cmd.Stdout, cmd.Stderr = log, log
	s.must(leftover.Start(s.dir, cmd))
	p := &Process{sandbox: s, name: filepath.Base(args[0]), log: name, pidFile: pidFile, done: make(chan struct{})}
	go func() { p.err = leftover.Wait(s.dir, cmd); close(p.done) }()
	return p
}

// Process is a program that runs in the sandbox.
type Process struct {
	sandbox *Sandbox
	name    string
	log     string
	pidFile string // of its id in the sandbox, or here if that is runc's
	done    chan struct{}
	err     error
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

// Err is how the process ended, as of exec.Cmd's Wait: with an exit code of 128 and the
// signal if it was killed. It waits for that.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Output is what the process printed so far.
func (p *Process) Output() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Signal sends the process a signal, by its name without SIG.
func (p *Process) Signal(name string) {
	p.sandbox.t.Helper()
	p.sandbox.Must("kill", "-"+name, p.sandboxPID())
}

// Stop ends the process with SIGTERM. One that ends by itself at that moment is
// stopped as well: kill then has no process to signal.
func (p *Process) Stop() {
	p.sandbox.t.Helper()
	output := "was not asked for"
	if !p.Ended() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		var err error
		if output, err = p.sandbox.Exec(ctx, "kill", "-TERM", p.sandboxPID()); err != nil {
			output = fmt.Sprintf("%v: %s", err, output)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); !p.Ended(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.sandbox.t.Fatalf("%s did not end within 30 s of SIGTERM (kill: %s)", p.name, strings.TrimSpace(output))
		}
	}
}

func (p *Process) sandboxPID() string {
	p.sandbox.t.Helper()
	var id []byte
	p.sandbox.Await("the process id of "+p.name, 10*time.Second, func() bool {
		var err error
		id, err = os.ReadFile(p.pidFile)
		return err == nil && len(id) > 0
	})
	pid := strings.TrimSpace(string(id))
	if Native() {
		var err error
		pid, err = innermost(pid)
		p.sandbox.must(err)
	}
	return pid
}

// RSS is the resident memory of the process, in bytes.
func (p *Process) RSS() int64 {
	p.sandbox.t.Helper()
	fields := strings.Fields(p.sandbox.Read("/proc/" + p.sandboxPID() + "/statm"))
	if len(fields) < 2 {
		p.sandbox.t.Fatalf("/proc/…/statm of %s has %d fields", p.name, len(fields))
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	p.sandbox.must(err)
	return pages * 4096
}

// Await waits for a condition.
func (s *Sandbox) Await(what string, within time.Duration, condition func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(within); !condition(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s did not happen within %v", what, within)
		}
	}
}

// Processes are those of the sandbox on this machine, one for each address space:
// runsc's own, and those of its process namespaces. The latter
// run the sandbox's programs, several processes in one address space, and have no
// command line (gVisor pkg/sentry/platform/systrap/subprocess.go).
func (s *Sandbox) Processes() []int {
	namespace := func(pid int) string {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		return link
	}
	of := make(map[string]bool)
	own := leftover.Processes(s.dir)
	for pid := range own {
		of[namespace(pid)] = true
	}
	delete(of, namespace(os.Getpid()))
	delete(of, "")
	var found []int
	add := func(pid int) {
		if !slices.ContainsFunc(found, func(other int) bool { return sameMemory(pid, other) }) {
			found = append(found, pid)
		}
	}
	for pid := range own {
		add(pid)
	}
	entries, err := os.ReadDir("/proc")
	s.must(err)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if _, ok := own[pid]; !ok && of[namespace(pid)] {
			add(pid)
		}
	}
	return found
}

// sameMemory reports whether two processes share their address space (kcmp(2)).
func sameMemory(a, b int) bool {
	const vm = 1 // KCMP_VM
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), vm, 0, 0, 0)
	return errno == 0 && order == 0
}

// stop deletes the sandbox and, if the test failed, keeps the logs.
func (s *Sandbox) stop() {
	if s.t.Failed() {
		kept, err := keepLogs(s.dir)
		if err != nil {
			s.t.Error(err)
		}
		s.t.Logf("the logs of the sandbox are in %s", kept)
	}
	if err := s.silent.end(); err != nil {
		s.t.Errorf("end the silent filesystem: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if out, err := s.command(ctx, "delete", "--force", s.id).CombinedOutput(); err != nil && !strings.Contains(string(out), "does not exist") {
		s.t.Errorf("delete the sandbox: %v\n%s", err, out)
	}
	if err := leftover.Remove(s.dir); err != nil {
		s.t.Error(err)
	}
}

// keepLogs copies the logs of the programs of a sandbox to a directory that stays.
func keepLogs(sandbox string) (kept string, err error) {
	if kept, err = os.MkdirTemp("", "k3s9p-sandbox-"); err != nil {
		return "", err
	}
	logs, err := filepath.Glob(filepath.Join(sandbox, "*.log"))
	for _, log := range logs {
		err = errors.Join(err, workdir.CopyFile(log, filepath.Join(kept, filepath.Base(log)), 0o644))
	}
	return kept, err
}

func (s *Sandbox) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}
