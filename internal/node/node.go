package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/blocker"
	"k3s9p/internal/bundle"
	"k3s9p/internal/config"
	"k3s9p/internal/hint"
	"k3s9p/internal/manifest"
	"k3s9p/internal/outside"
	"k3s9p/internal/probe"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/supervisor"
	"k3s9p/internal/svcproxy"
)

// Node is a node, with the control plane or one that has joined, while it is brought up,
// runs and is brought down.
type Node struct {
	options    Options
	paths      Paths
	build      record.Build
	version    string // of Kubernetes
	bundle     string // the directory of the programs
	cluster    Cluster
	advertise  netip.Addr       // where other nodes reach this machine; not valid if they cannot
	outside    *outside.Network // of a node in namespaces of its own
	plan       blocker.Plan
	files      config.Files
	supervisor *supervisor.Supervisor
	client     *client
	started    time.Time // the kubelet
	egress     []proxy   // those by which pods leave, if they do by any
	services   *services
	published  *svcproxy.Table // what a node in namespaces of its own has outside
	upstream   string          // the resolv.conf of whom the DNS server asks for other names; "" for nobody
	manifests  *manifest.Directory
	// manifestProblem is what was last logged about them.
	manifestProblem string
	imported        map[string]string // image archives, with their stamps
	k3sArgs         []string
	withoutK3s      []string          // the add-ons that k3s does not do, as it calls them
	lacking         map[string]string // the add-ons that nobody does though nobody has disabled them, and why
	log             *slog.Logger
	progress        *progress.Printer

	saving sync.Mutex
	state  State // guarded by saving
}

// step is a part of bringing a node up. What it says when it is done may be empty.
type step struct {
	title string
	do    func(ctx context.Context) (string, error)
	of    nodes
}

// nodes are those that have a step.
type nodes uint8

const (
	every   nodes = iota
	servers       // those with a control plane
	joined        // those without
)

func (s step) isOf(c Cluster) bool { return s.of == every || c.Joined() == (s.of == joined) }

// up brings the node up. What it did until an error is taken back by down.
func (n *Node) up(ctx context.Context) error {
	for _, s := range n.distribution().steps(n) {
		if !s.isOf(n.cluster) {
			continue
		}
		shown := n.progress.Step("%s", s.title)
		result, err := s.do(ctx)
		if err != nil {
			shown.Fail()
			return fmt.Errorf("%s: %w", s.title, err)
		}
		shown.Done("%s", result)
	}
	return nil
}

// plain makes a step of functions that have nothing to say.
func plain(functions ...func(context.Context) error) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		for _, f := range functions {
			if err := f(ctx); err != nil {
				return "", err
			}
		}
		return "", nil
	}
}

// isolateMounts keeps what is mounted from now on in this namespace: mounts made
// outside still appear in here. What was shared is shared in here as well, so that
// package blocker finds the same as outside.
func isolateMounts() error {
	unshared, err := probe.Unshared()
	if err != nil {
		return err
	}
	err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	if shared := !slices.ContainsFunc(unshared, probe.Unsharing.IsRoot); err == nil && shared {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	}
	if err != nil {
		return hint.Add(fmt.Errorf("keep the node's mounts to itself: %w", err), "a container needs CAP_SYS_ADMIN for it")
	}
	return nil
}

// unpack writes the programs once for each content of the launcher.
func (n *Node) unpack(context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	b, err := bundle.Open(self)
	if err != nil {
		return "", err
	}
	defer b.Close()
	n.bundle = n.paths.bundle(b)
	result := "unpacked before"
	if _, err := os.Stat(n.bundle); errors.Is(err, os.ErrNotExist) {
		if err := n.enoughSpace(); err != nil {
			return "", err
		}
		if err := b.Unpack(n.bundle); errors.Is(err, bundle.ErrDamaged) {
			return "", hint.Add(err, "copy the file again: it is not what was built")
		} else if err != nil {
			return "", err
		}
		result = progress.Size(sizeOf(n.build))
	} else if err != nil {
		return "", err
	}
	return result, n.removeOtherBundles()
}

func sizeOf(build record.Build) int64 {
	total := int64(0)
	for _, output := range build.Outputs {
		total += output.Size
	}
	return total
}

// spare is what a node writes at its first start besides its programs, in bytes.
const spare = 64 << 20

func (n *Node) enoughSpace() error {
	var st unix.Statfs_t
	if err := unix.Statfs(n.paths.Data, &st); err != nil || st.Blocks == 0 {
		return nil // it does not say
	}
	if have, need := int64(st.Bavail)*st.Frsize, sizeOf(n.build)*n.distribution().unpacked+spare; have < need {
		return hint.Add(fmt.Errorf("the filesystem of %s has %s left, and the node needs %s: %w", n.paths.Data, progress.Size(have), progress.Size(need), unix.ENOSPC),
			"make space, or name a directory elsewhere with --data-dir")
	}
	return nil
}

// removeOtherBundles removes the programs of other versions, and what an interrupted
// unpacking left.
func (n *Node) removeOtherBundles() error {
	entries, err := os.ReadDir(n.paths.bundles())
	for _, entry := range entries {
		if entry.Name() != filepath.Base(n.bundle) {
			err = errors.Join(err, rmtree.Tree(filepath.Join(n.paths.bundles(), entry.Name())))
		}
	}
	return err
}

// fix plans what is done on this machine, does it except for the network, and writes
// the configuration.
func (n *Node) fix(ctx context.Context) (string, error) {
	server, pods, err := chooseResolvers(n.paths, n.options, n.cluster.DNS(), n.outside != nil)
	if err != nil {
		return "", err
	}
	host := hostOf(n.paths, n.cluster, n.bundle)
	host.Settings.UserNamespace = n.outside != nil
	host.Settings.Kubelet.Resolver = pods.file
	if n.plan, err = makePlan(ctx, n.paths, n.cluster, n.options, host); err != nil {
		return "", err
	}
	if err := errors.Join(taken(n.paths), stuck(n.plan)); err != nil {
		return "", err
	}
	if err := n.plan.Apply(n.paths.journal(), func(id string) bool { return !isNetwork(id) }); err != nil {
		return "", err
	}
	n.upstream = server.file
	if err := errors.Join(server.write(), pods.write()); err != nil {
		return "", fmt.Errorf("write the name servers: %w", err)
	}
	if err := n.distribution().configure(n); err != nil {
		return "", err
	}
	found := 0
	for _, f := range n.plan.Findings {
		if f.Answer == blocker.Found {
			found++
		}
	}
	for _, f := range n.plan.Warnings() {
		n.progress.Say("  warning: %s: %s", f.Title, f.Action)
	}
	return fmt.Sprintf("%d of %d blockers found; images: %s", found, len(n.plan.Findings), n.plan.Value(blocker.Images)), nil
}

// program is the path of one of the node's programs.
func (n *Node) program(name string) string {
	program := filepath.Join(n.distribution().bin(n.paths, n.bundle), name)
	if _, err := os.Stat(program); err != nil { // the bundle has it beside those
		return filepath.Join(n.bundle, "bin", name)
	}
	return program
}

func (n *Node) start(name string, grace time.Duration, args ...string) error {
	return n.startWith(name, grace, n.environment(), args...)
}

func (n *Node) startWith(name string, grace time.Duration, env []string, args ...string) error {
	return n.supervisor.Start(supervisor.Program{Name: name, Args: append([]string{n.program(name)}, args...), Env: env, Grace: grace})
}

// down ends the node and takes back what it changed.
func (n *Node) down() error {
	n.distribution().endPods(n)
	if n.runs(containerd) {
		ctx, cancel := context.WithTimeout(context.Background(), podGrace*time.Second+3*time.Second)
		if err := n.stopPods(ctx); err != nil {
			n.log.Warn("stop the pods; what is left of them is killed", "error", err)
		}
		cancel()
	}
	if n.client != nil {
		// The apiserver waits five seconds for a connection on which nothing has been
		// asked yet (net/http Server.Shutdown, golang.org/issue/22682), and a client
		// keeps such ones.
		n.client.http.CloseIdleConnections()
	}
	n.supervisor.StopAll()
	n.closeServices()
	n.closePublished()
	n.closeEgress()
	return errors.Join(uncover(n.distribution().covered), clean(n.paths))
}

// uncover unmounts what covers directories in the mount namespace of the node, so that
// those can be removed that were made for it.
func uncover(dirs []string) error {
	for _, dir := range dirs {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it was not covered yet
			return fmt.Errorf("uncover %s: %w", dir, err)
		}
	}
	return nil
}

func (n *Node) runs(name string) bool {
	for _, state := range n.supervisor.States() {
		if state.Name == name {
			return state.PID != 0
		}
	}
	return false
}

// kubernetesVersion is the version of the set that has the kubelet.
func kubernetesVersion(build record.Build) string {
	for _, set := range build.Sets {
		if set.Name == "kubernetes" || set.Name == k3sName {
			return set.Version
		}
	}
	return strings.Split(build.Version, "+")[0]
}
