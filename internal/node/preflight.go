package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/hint"
	"k3s9p/internal/record"
)

// preflight checks what can be known before anything is changed, and returns what
// the node is going to be.
func preflight(o Options, rung Rung, ports func(Options, Cluster) []listener) (record.Build, Cluster, error) {
	p := Paths{o.DataDir}
	build, err := buildOf()
	if err != nil {
		return record.Build{}, Cluster{}, err
	}
	if err := p.ours(filepath.Base(p.Manifests()), "lost+found"); err != nil { // of users, who may want it applied; of a disk
		return build, Cluster{}, err
	}
	routes, err := routesOf(p)
	if err != nil {
		return build, Cluster{}, err
	}
	cluster, err := settle(p, o, build.Distribution, routes)
	if err == nil {
		cluster, err = cluster.upgrade(p, VersionsOf(build))
	}
	if err != nil {
		return build, cluster, err
	}
	if err := fits(o, cluster, rung); err != nil {
		return build, cluster, err
	}
	return build, cluster, portsFree(p, ports(o, cluster))
}

// fits returns an error about a node that cannot be a part of its cluster: other nodes
// would have to reach it and could not, or it is asked for what the server does.
func fits(o Options, c Cluster, rung Rung) error {
	if args := len(o.APIServerArgs) + len(o.ControllerManagerArgs) + len(o.SchedulerArgs); c.Joined() && args > 0 {
		return hint.Add(fmt.Errorf("this node has joined the cluster of %s, and has no control plane of which a flag could be set", c.Server), "--kube-apiserver-arg and the like are for up on that server")
	}
	if err := c.distribution().fits(o, c, rung); err != nil {
		return err
	}
	if !rung.Rootless {
		_, err := advertised(o, c)
		return err
	}
	switch {
	case c.Joined():
		return hint.Add(fmt.Errorf("a node that joins needs the machine's own network, and this one would run %s", rung), "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it")
	case o.AdvertiseAddress != "":
		return hint.Add(fmt.Errorf("--advertise-address is for other nodes, and no other reaches one that runs %s", rung), "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it")
	}
	return nil
}

// listener is a port of a program.
type listener struct{ program, network, address string }

// published are the ports that a node in namespaces of its own has outside.
var published = []listener{{"kube-apiserver", "tcp", fmt.Sprintf(":%d", port)}}

// ownPorts are those that the programs of a node listen at, on all addresses or on
// loopback.
func ownPorts(_ Options, c Cluster) []listener {
	d := c.distribution()
	if c.Joined() {
		return d.listening
	}
	return slices.Concat(d.listeningServers, d.listening)
}

// portsFree tries each port. What a killed node of this directory still holds is
// freed by up.
func portsFree(p Paths, ports []listener) error {
	for _, l := range ports {
		err := portFree(l.network, l.address)
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("try the port of %s: %w", l.program, err)
		}
		_, text, _ := net.SplitHostPort(l.address)
		number, _ := strconv.Atoi(text)
		pid, who := holder(l.network, number)
		if left, err := processes(p); err == nil && left[pid] != "" {
			continue
		}
		return hint.Add(fmt.Errorf("port %s, which %s needs, is in use by %s", text, l.program, who), "stop that: there can be one cluster on a machine")
	}
	return nil
}

// passing is how long a port may be in use and still count as free: who only tries it, as
// here, holds it for a moment.
const passing = 500 * time.Millisecond

func portFree(network, address string) error {
	for deadline := time.Now().Add(passing); ; time.Sleep(20 * time.Millisecond) {
		var held io.Closer
		var err error
		if network == "udp" {
			held, err = net.ListenPacket(network, address)
		} else {
			held, err = net.Listen(network, address)
		}
		if err == nil {
			return held.Close()
		}
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
			return err
		}
	}
}

// waiting is the state of a socket without a peer, in the tables of /proc/net
// (include/net/tcp_states.h; UDP uses the same).
var waiting = map[string]string{"tcp": "0A", "udp": "07"}

// socketsAt are the inodes of the sockets in a table that are in a state at a port.
func socketsAt(table io.Reader, state string, port int) []string {
	var inodes []string
	for lines := bufio.NewScanner(table); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && fields[3] == state && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// inUse is the error of who listens at a port, with who has it already if that is it,
// except for some processes.
func inUse(network string, port int, err error, except ...int) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	_, who := holder(network, port, except...)
	return fmt.Errorf("it is in use by %s", who)
}

// holder names the process that waits at a port of tcp or udp, as far as /proc shows it
// (proc_net_tcp(5)).
func holder(network string, port int, except ...int) (int, string) {
	sockets := make(map[string]bool)
	for _, name := range []string{"/proc/net/" + network, "/proc/net/" + network + "6"} {
		table, err := os.Open(name)
		if err != nil {
			continue
		}
		for _, inode := range socketsAt(table, waiting[network], port) {
			sockets["socket:["+inode+"]"] = true
		}
		table.Close()
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !sockets[target] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil || slices.Contains(except, pid) {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return pid, fmt.Sprintf("%s (process %d)", bytes.TrimSpace(name), pid)
	}
	return 0, "a process that /proc does not show"
}
