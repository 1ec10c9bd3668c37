package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/reexec"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"k3s9p/internal/blocker"
	"k3s9p/internal/gateway"
	"k3s9p/internal/hint"
	"k3s9p/internal/outside"
	"k3s9p/internal/probe"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/svcproxy"
	"k3s9p/internal/userns"
)

// A node stands on one of two rungs. With the privileges that it needs it runs in the
// machine's own network. Without, the supervisor and all that it starts are in a user
// namespace and others of their own, where they have all capabilities; one process
// stays outside and opens sockets for them.

// The choices of --rootless.
const (
	RootlessAuto   = "auto"
	RootlessAlways = "always"
	RootlessNever  = "never"
)

// Rung is where a node is going to run.
type Rung struct {
	// Rootless says that it is in namespaces of its own.
	Rootless bool `json:"rootless"`
	// Why says what is missing for the other rung, or that it was asked for.
	Why string `json:"why,omitempty"`
}

func (r Rung) String() string {
	switch {
	case r.Rootless:
		return "without privileges, in namespaces of its own: " + r.Why
	case r.Why != "":
		return "nowhere: " + r.Why
	}
	return "with the privileges of root"
}

// ports are those that have to be free on this machine.
func (r Rung) ports(o Options, c Cluster) []listener {
	ports := ownPorts(o, c)
	if r.Rootless {
		ports = published
	}
	publications, _ := o.publications() // they were checked
	for _, p := range publications {
		ports = append(slices.Clip(ports), listener{"--publish " + p.text, strings.ToLower(string(p.protocol)), p.at.String()})
	}
	return ports
}

// uplink is an error if a node in namespaces of its own could reach nothing outside,
// and nobody has accepted that.
func (r Rung) uplink(ctx context.Context, o Options) error {
	if !r.Rootless || o.Network == NetworkNone {
		return nil
	}
	if err := probe.Tun(ctx); err != nil {
		return hint.Add(fmt.Errorf("the node would reach nothing outside: there would be no image pulls, and no egress of pods: %w", err),
			"give the sandbox /dev/net/tun (docker run --device /dev/net/tun), or accept it with --network=%s", NetworkNone)
	}
	return nil
}

// FindRung tries what a node needs: with the privileges of this process, and otherwise
// in namespaces of its own.
func FindRung(ctx context.Context, asked string) (Rung, error) {
	var refused error
	if asked == RootlessAlways {
		refused = errors.New("--rootless asks for it")
	} else if refused = privileges(ctx); refused == nil {
		return Rung{}, nil
	}
	if asked == RootlessNever {
		return Rung{}, hint.Add(fmt.Errorf("this process has not the privileges that a node needs, and --rootless=never forbids namespaces of its own: %w", refused),
			"--rootless=auto")
	}
	if err := probe.Namespaces(ctx); err != nil {
		return Rung{}, noRung(refused, err)
	}
	return Rung{Rootless: true, Why: refused.Error()}, nil
}

// privileges says which a node would lack in the machine's own network.
func privileges(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("this process is not root")
	}
	if missing := userns.Missing(); len(missing) > 0 {
		return fmt.Errorf("root has no %s here", strings.Join(missing, " and no "))
	}
	return probe.Privileges(ctx)
}

// noRung is the error about a machine on which there is none.
func noRung(privileged, rootless error) error {
	err := fmt.Errorf("a node needs the privileges of root, or namespaces of its own in which it has them: %w; %w", privileged, rootless)
	switch forbidden := userns.Forbidden(); {
	case forbidden != "":
		return hint.Add(err, "%s", forbidden)
	case os.Geteuid() != 0:
		return hint.Add(err, "sudo k3s9p up")
	case hint.In(rootless):
		return err
	}
	return hint.Add(err, "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN, or user namespaces in which cgroups can be mounted, as in gVisor")
}

// keeperName is the name that the process is started under that stays outside.
const keeperName = "k3s9p-outside"

// outsideFile is the supervisor's connection to it.
const outsideFile = 5

func init() { reexec.Register(keeperName, keep) }

// keep starts the supervisor in namespaces of its own, with the files of this process,
// and opens sockets for it until it ends. What a killed supervisor leaves would be of
// no use: its network ends with this process.
func keep() {
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	p := Paths{os.Args[1]}
	order, reports := os.NewFile(orderFile, "order"), os.NewFile(reportFile, "report")
	cmd, inside, err := startInside(order, reports)
	if err != nil {
		_ = json.NewEncoder(reports).Encode(report{Error: err.Error()})
		os.Exit(1)
	}
	order.Close()
	reports.Close()
	detach(os.DevNull)
	go outside.Serve(inside, nameHolder(cmd.Process.Pid), localAddresses)
	go func() {
		for range signals {
			_ = cmd.Process.Signal(unix.SIGTERM)
		}
	}()
	if cmd.Wait() != nil {
		_ = endProcesses(p)
		os.Exit(1)
	}
}

// nameHolder names the process that has a port of this machine already. That is not the
// supervisor, which listens at the same port in its own network: an older gVisor shows
// the sockets of all networks in /proc/net.
func nameHolder(supervisor int) outside.Explain {
	return func(network, address string, err error) error {
		at, parseErr := netip.ParseAddrPort(address)
		if parseErr != nil {
			return err
		}
		return inUse(strings.TrimRight(network, "46"), int(at.Port()), err, supervisor)
	}
}

func startInside(order, reports *os.File) (*exec.Cmd, *net.UnixConn, error) {
	here, there, err := outside.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer there.Close()
	cmd := reexec.Command(supervisorName)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{order, reports, there}
	if err := userns.Start(cmd); err != nil {
		return nil, nil, fmt.Errorf("start the supervisor in namespaces of its own: %w", err)
	}
	return cmd, here, nil
}

// untilAlone ends a context when nobody is outside any more: then the node has no
// network.
func (n *Node) untilAlone(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if n.outside != nil {
		go func() {
			<-n.outside.Gone()
			cancel()
		}()
	}
	return ctx, cancel
}

// planName is the name of a process that makes a plan in namespaces of its own.
const planName = "k3s9p-plan"

func init() { reexec.Register(planName, printPlan) }

// planInside makes the plan of a node that will be there. Each probe has a deadline.
func planInside(_ context.Context, o Options) (blocker.Plan, error) {
	options, err := json.Marshal(o)
	if err != nil {
		return blocker.Plan{}, err
	}
	cmd := reexec.Command(planName, string(options))
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, os.Stderr
	if err = userns.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return blocker.Plan{}, fmt.Errorf("check in namespaces of its own: %w", err)
	}
	var plan blocker.Plan
	return plan, json.Unmarshal(output.Bytes(), &plan)
}

func printPlan() {
	var o Options
	var plan blocker.Plan
	err := errors.Join(json.Unmarshal([]byte(os.Args[1]), &o), userns.MountCgroup())
	if err == nil {
		plan, err = Rung{Rootless: true}.planHere(context.Background(), o)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(plan)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// loopback sets the loopback device of a new network namespace up.
func loopback() error {
	link, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set up loopback in a network namespace: %w", err)
	}
	return nil
}

// openGateway gives the node's own network namespace an uplink.
func (n *Node) openGateway() error {
	if n.outside == nil {
		return nil
	}
	if err := n.paths.journal().Record("namespaces", namespacesChange{os.Getpid()}); err != nil {
		return err
	}
	if n.options.Network == NetworkNone {
		return nil
	}
	resolver, err := n.loopbackResolver()
	if err != nil {
		return err
	}
	return gateway.Open(gateway.Options{Dial: n.outside.Dial, Resolver: resolver, Log: n.log.With("part", "gateway")})
}

// dialer is how pods reach what is outside, or nil for the node's own network. An address
// of the node, such as the external IP of a Service, is in here.
func (n *Node) dialer() svcproxy.Dialer {
	if n.outside == nil {
		return nil
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if to, err := netip.ParseAddrPort(address); err == nil && slices.Contains(localAddresses(), to.Addr()) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		return n.outside.Dial(ctx, network, address)
	}
}

// gatewayResolver is the resolv.conf by which names are asked for at the gateway.
var gatewayResolver = "nameserver " + gateway.Address.String() + "\n"

// loopbackResolver returns the machine's resolver if that has a loopback address, which
// is another one in here: then names are asked for at the gateway.
func (n *Node) loopbackResolver() (netip.AddrPort, error) {
	file, err := os.Open(machineResolver)
	if err != nil {
		return netip.AddrPort{}, nil // no names are resolved outside either
	}
	defer file.Close()
	resolver := firstResolver(file)
	if !resolver.IsLoopback() {
		return netip.AddrPort{}, nil
	}
	own := n.paths.etc("resolv.conf")
	if err := writeFile(own, []byte(gatewayResolver), 0o644); err != nil {
		return netip.AddrPort{}, err
	}
	if err := unix.Mount(own, machineResolver, "", unix.MS_BIND, ""); err != nil {
		return netip.AddrPort{}, fmt.Errorf("mount %s at %s: %w", own, machineResolver, err)
	}
	return netip.AddrPortFrom(resolver, 53), nil
}

func firstResolver(r io.Reader) netip.Addr {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		if address, ok := nameserver(scanner.Text()); ok {
			return address
		}
	}
	return netip.Addr{}
}

// namespacesChange is the record of namespaces of a node's own. What it records of
// devices and rules is in there.
type namespacesChange struct {
	PID int `json:"pid"` // of the supervisor
}

// namespaced are the records of what ends with the namespaces. That packets are
// forwarded is not among them: in gVisor /proc/sys/net is that of the machine's own
// network, whoever asks (pkg/sentry/fsimpl/proc/tasks_sys.go), so it is taken back.
var namespaced = []string{rulesRecord, bridgeRecord}

// forgetNamespaces drops what is recorded of namespaces that have ended with their
// processes, or are about to.
func forgetNamespaces(p Paths) error {
	var change namespacesChange
	recorded, _, err := p.journal().Read("namespaces", &change)
	if err != nil || !recorded {
		return err
	}
	for _, id := range append(namespaced, "namespaces") {
		if err := p.journal().Forget(id); err != nil {
			return err
		}
	}
	return nil
}

// delegatedLeftovers takes back what a killed node has left in a cgroup that was
// delegated to its user: another node may be in another one, and not see it.
func delegatedLeftovers(p Paths) error {
	var change cgroupsChange
	recorded, _, err := p.journal().Read(cgroupsRecord, &change)
	if err != nil || !recorded || change.Delegation == nil {
		return nil // what is wrong is said later
	}
	if running, err := p.running(); err != nil || running {
		return nil
	}
	return stop(p)
}

// removeName is the name of a process that removes a directory.
const removeName = "k3s9p-remove"

func init() {
	reexec.Register(removeName, func() {
		if err := removeAll(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	})
}

// removeData removes a directory of a node. What is in it of users that were mapped in
// the node's namespaces is removed in such ones.
func removeData(dir string) error {
	err := removeAll(dir)
	if os.Geteuid() == 0 || !errors.Is(err, os.ErrPermission) {
		return err
	}
	cmd := reexec.Command(removeName, dir)
	cmd.Stderr = os.Stderr
	if err := userns.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// removeAll removes a directory. One that somebody has mounted stays, and is empty then.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		err = errors.Join(err, rmtree.Tree(filepath.Join(dir, entry.Name())))
	}
	if err != nil {
		return err
	}
	if err := os.Remove(dir); !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// privilegedLeftovers is an error if a node on the other rung was killed: what it has
// left on the machine cannot be taken back from inside of namespaces.
func privilegedLeftovers(p Paths) error {
	if p.pending() && !p.journal().Has("namespaces") {
		return hint.Add(errors.New("a node that ran with privileges was killed, and has left something on this machine"), "k3s9p down takes it back")
	}
	return nil
}

// server is where a client outside of the cluster finds the apiserver.
func (n *Node) server() string {
	switch {
	case n.outside != nil:
		return fmt.Sprintf("https://127.0.0.1:%d", port)
	case n.cluster.Joined():
		return n.cluster.Server
	}
	return fmt.Sprintf("https://%s:%d", n.cluster.Address(), port)
}

var serverLine = regexp.MustCompile(`(?m)^( *server: ).*$`)

// address puts the apiserver's address into the administrator's kubeconfig: the node
// may stand on another rung than last time.
func (n *Node) address(context.Context) error {
	data, err := os.ReadFile(n.paths.Kubeconfig())
	if err != nil {
		return err
	}
	return writeFile(n.paths.Kubeconfig(), serverLine.ReplaceAll(data, []byte("${1}"+n.server())), 0o600)
}
