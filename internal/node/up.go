package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/moby/sys/reexec"
	"golang.org/x/sys/unix"
	"gopkg.in/natefinch/lumberjack.v2"

	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
	"k3s9p/internal/outside"
	"k3s9p/internal/probe"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/supervisor"
	"k3s9p/internal/userns"
)

// supervisorName is the name that the supervisor is started under. It is the same
// program as the one that starts it, in a mount namespace of its own.
const supervisorName = "k3s9p-supervisor"

// The files that the supervisor gets besides standard input and outputs.
const (
	orderFile  = 3 // an order, and nothing more
	reportFile = 4 // a report when the node is Ready, or an error
)

func init() { reexec.Register(supervisorName, supervise) }

// order is what a supervisor is told.
type order struct {
	Options  Options `json:"options"`
	Rootless bool    `json:"rootless,omitempty"`
}

// report is what a supervisor tells once.
type report struct {
	Ready bool   `json:"ready"`
	Error string `json:"error,omitempty"`
}

// errInterrupted is what a signal gives that comes before the node is Ready.
var errInterrupted = errors.New("interrupted; what was begun is taken back")

// Up brings a node up. It returns when the node is Ready and Options.Detach is set;
// otherwise when the node has ended, which a signal to this process brings about.
// Ready is called in between. Where the node does not come up, all that was done is
// taken back.
func Up(o Options, ready func()) error {
	if err := o.check(); err != nil {
		return err
	}
	p := Paths{o.DataDir}
	if err := delegatedLeftovers(p); err != nil {
		return fmt.Errorf("clean up after a node that was killed: %w", err)
	}
	rung, err := FindRung(context.Background(), o.Rootless)
	if err != nil {
		return err
	}
	if running, err := p.running(); err != nil {
		return err
	} else if running {
		return runningError(p)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	order, err := orderFor(context.Background(), o, rung)
	if err != nil {
		return err
	}
	child, reports, err := startSupervisor(order)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	for {
		select {
		case <-signals:
			_ = child.Process.Signal(unix.SIGTERM)
		case r, ok := <-reports:
			switch {
			case !ok: // it has said all
				reports = nil
				if err := <-ended; err != nil {
					return hint.Add(fmt.Errorf("the supervisor of the node ended: %w", err), "look at %s; k3s9p down cleans up", p.supervisorLog())
				}
				return nil
			case r.Error != "":
				<-ended
				return errors.New(r.Error)
			}
			ready()
			if o.Detach {
				return nil
			}
		}
	}
}

// orderFor checks what can be known outside, and settles what cannot be known inside of
// namespaces: where this machine has routes to.
func orderFor(ctx context.Context, o Options, rung Rung) (order, error) {
	_, cluster, err := preflight(o, rung, rung.ports)
	if err != nil || !rung.Rootless {
		return order{Options: o}, err
	}
	if err := rung.uplink(ctx, o); err != nil {
		return order{}, err
	}
	if err := privilegedLeftovers(Paths{o.DataDir}); err != nil {
		return order{}, err
	}
	o.ClusterCIDR, o.ServiceCIDR = cluster.ClusterCIDR.String(), cluster.ServiceCIDR.String()
	return order{Options: o, Rootless: true}, nil
}

func (p Paths) supervisorLog() string { return filepath.Join(p.Logs(), "k3s9p.log") }

// startSupervisor starts this program once more, in a mount namespace and a session
// of its own, so that a Ctrl-C reaches this process only.
func startSupervisor(o order) (*exec.Cmd, <-chan report, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	orderReader, orderWriter, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer orderReader.Close()
	reportReader, reportWriter, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer reportWriter.Close()
	cmd := reexec.Command(supervisorName)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if o.Rootless {
		cmd = reexec.Command(keeperName, o.Options.DataDir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{orderReader, reportWriter}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the supervisor: %w", err)
	}
	if _, err := orderWriter.Write(data); err != nil {
		return nil, nil, err
	}
	orderWriter.Close()
	reports := make(chan report, 2)
	go func() {
		defer close(reports)
		decoder := json.NewDecoder(reportReader)
		for {
			var r report
			if decoder.Decode(&r) != nil {
				return
			}
			reports <- r
		}
	}()
	return cmd, reports, nil
}

// supervise is the supervisor: it brings the node up, keeps it running and brings
// it down when it gets a signal.
func supervise() {
	// Whoever started it may be gone, and its terminal too.
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	reports := os.NewFile(reportFile, "report")
	unix.CloseOnExec(reportFile)
	tell := func(r report) { _ = json.NewEncoder(reports).Encode(r) }
	var o order
	in := os.NewFile(orderFile, "order")
	err := json.NewDecoder(in).Decode(&o)
	in.Close()
	if err == nil {
		err = run(ctx, o, tell)
	}
	if err != nil {
		tell(report{Error: err.Error()})
		os.Exit(1)
	}
}

// run is the life of a node.
func run(ctx context.Context, o order, tell func(report)) error {
	p := Paths{o.Options.DataDir}
	if err := os.MkdirAll(p.Logs(), 0o755); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	lock := flock.New(p.lock())
	// Who only looks whether a node runs holds it for a moment.
	moment, cancel := context.WithTimeout(ctx, time.Second)
	alone, err := lock.TryLockContext(moment, 20*time.Millisecond)
	cancel()
	if !alone {
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			return runningError(p)
		}
		return fmt.Errorf("lock %s: %w", p.lock(), err)
	}
	defer lock.Close() // at last: who gets it finds nothing of this node
	n, err := newNode(o, p)
	if err != nil {
		return err
	}
	ctx, cancel = n.untilAlone(ctx)
	defer cancel()
	if err := isolateMounts(); err != nil {
		return err
	}
	if err := clean(p); err != nil {
		return fmt.Errorf("clean up after a node that was killed: %w", err)
	}
	if err := n.cluster.save(p); err != nil {
		return err
	}
	if err := os.MkdirAll(p.temporary(), 0o700); err != nil {
		return err
	}
	if err := n.openGateway(); err != nil {
		return errors.Join(err, clean(p))
	}
	n.enter(Starting)
	limited, cancel := context.WithTimeoutCause(ctx, o.Options.Wait, fmt.Errorf("the node was not Ready within --wait %v", o.Options.Wait))
	err = n.up(limited)
	cancel()
	if err != nil {
		n.log.Error("the node did not come up", "error", err)
		if ctx.Err() != nil {
			err = errInterrupted
		}
		n.progress.Say("taking back what was done")
		return errors.Join(err, n.down())
	}
	n.supervisor.Keep()
	n.enter(Running)
	n.log.Info("the node is Ready")
	tell(report{Ready: true})
	if o.Options.Detach {
		detach(n.paths.supervisorLog())
	}
	go n.watchImages(ctx)
	go n.followIDs(ctx)
	go n.serveCommands()
	go n.followNodes(ctx)
	followers := map[string]func(context.Context){servicesAddOn: n.followServices, storageAddOn: n.followClaims}
	if !n.cluster.Joined() {
		go n.followManifests(ctx)
		go n.followRequests(ctx)
		followers[metricsAddOn] = n.followMetrics
	}
	for addOn, follow := range followers {
		if n.options.has(addOn) {
			go follow(ctx)
		}
	}
	go n.supervisor.Reap(ctx)
	<-ctx.Done()
	n.enter(Stopping)
	n.log.Info("stopping the node")
	step := n.progress.Step("stop the node")
	if err := n.down(); err != nil {
		step.Fail()
		return err
	}
	step.Done("")
	return nil
}

// newNode is a node of which nothing runs yet.
func newNode(o order, p Paths) (*Node, error) {
	n := &Node{options: o.Options, paths: p, imported: make(map[string]string), progress: progress.New(false)}
	var err error
	if o.Rootless {
		if err = errors.Join(loopback(), userns.MountCgroup()); err != nil {
			return nil, err
		}
		if n.outside, err = outside.Use(os.NewFile(outsideFile, "outside")); err != nil {
			return nil, err
		}
	}
	if n.build, n.cluster, err = preflight(o.Options, Rung{}, ownPorts); err != nil {
		return nil, err
	}
	if n.outside == nil {
		if n.advertise, err = advertised(o.Options, n.cluster); err != nil {
			return nil, err
		}
	}
	n.version = kubernetesVersion(n.build)
	n.log = slog.New(slog.NewTextHandler(&lumberjack.Logger{Filename: p.supervisorLog(), MaxSize: 10, MaxBackups: 2}, nil))
	n.supervisor = supervisor.New(p.Logs(), n.log, n.programs)
	n.state = State{DataDir: p.Data, PID: os.Getpid(), Since: time.Now(), Version: n.version, Cluster: &n.cluster,
		Rootless: o.Rootless, Server: n.server()}
	if n.advertise.IsValid() {
		n.state.Address = n.advertise.String()
	}
	return n, nil
}

// enter notes what the node is doing as a whole.
func (n *Node) enter(phase Phase) {
	n.saving.Lock()
	defer n.saving.Unlock()
	n.state.Phase = phase
	if n.plan.Findings != nil {
		n.state.Plan = &n.plan
	}
	if phase == Running {
		n.state.AddOns = n.describeAddOns()
	}
	n.save()
}

// programs notes what the programs are doing.
func (n *Node) programs(states []supervisor.State) {
	n.saving.Lock()
	defer n.saving.Unlock()
	n.state.Programs = nil
	for _, state := range states {
		n.state.Programs = append(n.state.Programs, Program{State: state})
	}
	n.save()
}

// buildOf is the record of the distribution in this program.
func buildOf() (record.Build, error) {
	self, err := os.Executable()
	if err != nil {
		return record.Build{}, err
	}
	b, err := bundle.Open(self)
	if err != nil {
		return record.Build{}, err
	}
	defer b.Close()
	return b.Build()
}

// detach lets go of the terminal.
func detach(log string) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		out = null
	}
	for fd, file := range []*os.File{null, out, out} {
		_ = unix.Dup3(int(file.Fd()), fd, 0)
	}
}

// Down ends the node, if it runs, and takes back what it changed on the machine. It
// reports whether there was anything to do. With purge the data goes as well.
func Down(o Options, purge bool, printer *progress.Printer) (bool, error) {
	p := Paths{o.DataDir}
	if err := p.check(); err != nil {
		return false, err
	}
	for _, dir := range []string{filepath.Dir(p.Data), p.Data} { // a check that was killed
		probe.Sweep(dir)
	}
	if _, err := os.Stat(p.Data); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err := p.owned(); err != nil {
		return false, err
	}
	if err := p.ours(); err != nil {
		return false, err
	}
	running, err := p.running()
	if err != nil {
		return false, err
	}
	var work bool
	if running || p.pending() {
		work = true
		step := printer.Step("stop the node")
		if err := stop(p); err != nil {
			step.Fail()
			return true, err
		}
		step.Done("")
	}
	if purge {
		leave(p, printer)
		step := printer.Step("remove %s", p.Data)
		if err := removeData(p.Data); err != nil {
			step.Fail()
			return true, err
		}
		step.Done("")
		work = true
	}
	return work, nil
}

// owned returns an error if the node is that of another user, whose processes this one
// cannot end.
func (p Paths) owned() error {
	var st unix.Stat_t
	if err := unix.Stat(p.Data, &st); err != nil {
		return fmt.Errorf("look whose %s is: %w", p.Data, err)
	}
	if euid := os.Geteuid(); euid != 0 && int(st.Uid) != euid {
		return hint.Add(fmt.Errorf("the node in %s belongs to user %d", p.Data, st.Uid), "sudo k3s9p down, or name another one with --data-dir")
	}
	return nil
}

// leave takes a node that has joined out of its cluster, whose server may be gone.
func leave(p Paths, printer *progress.Printer) {
	c, err := readCluster(p)
	if err != nil || c == nil || !c.Joined() || !p.credentials() {
		return
	}
	step := printer.Step("take the node %s out of the cluster", c.NodeName)
	client, err := newClient(p.conf("kubelet"))
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err = client.do(ctx, http.MethodDelete, nodesPath+"/"+c.NodeName, nil)
	}
	if err == nil || answered(err, http.StatusNotFound) {
		step.Done("")
		return
	}
	step.Fail()
	printer.Say("  warning: the server still has it: %v; there: k3s9p kubectl delete node %s", err, c.NodeName)
}

// pending reports whether a node has left something on this machine that is to be
// taken back, besides its data.
func (p Paths) pending() bool {
	_, err := os.Stat(p.run())
	return err == nil || !p.journal().Empty()
}

// ours returns an error for a directory that has something in it that no node has made: all
// of it would be removed with the node. What else may be there is named.
func (p Paths) ours(others ...string) error {
	entries, err := os.ReadDir(p.Data)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(p.cluster()); err == nil {
		return nil
	}
	own := append([]string{"lock", "log", "bundle", "fixes", "run"}, others...)
	for _, entry := range entries {
		name := entry.Name()
		if passing := strings.HasPrefix(name, ".tmp-") || strings.HasPrefix(name, ".probe-"); !passing && !slices.Contains(own, name) {
			return hint.Add(fmt.Errorf("%s is not the data directory of a node: it has %s and no cluster.json", p.Data, name), "--data-dir names it; a new one is a directory that is empty or does not exist")
		}
	}
	return nil
}

// stop ends the supervisor and waits for its lock; then it cleans up what a killed
// one has left.
func stop(p Paths) error {
	lock := flock.New(p.lock())
	defer lock.Close()
	signalled := false
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		alone, err := lock.TryLock()
		if err != nil {
			return fmt.Errorf("lock %s: %w", p.lock(), err)
		}
		if alone {
			return clean(p)
		}
		pid := supervisorOf(p)
		if pid > 0 && !signalled {
			signalled = unix.Kill(pid, unix.SIGTERM) == nil
		}
		if time.Now().After(deadline) {
			if pid == 0 {
				return hint.Add(fmt.Errorf("somebody holds %s, and it is no supervisor of a node", p.lock()), "fuser %s names the process", p.lock())
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				return fmt.Errorf("end the supervisor, process %d: %w", pid, err)
			}
			deadline = time.Now().Add(10 * time.Second)
		}
	}
}
