package node

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/hint"
	"k3s9p/internal/journal"
	"k3s9p/internal/probe"
	"k3s9p/internal/userns"
)

// The changes of the machine that every node makes, by the names of their records in
// the journal.
const (
	directoriesRecord = "directories"
	cgroupsRecord     = "cgroups"
	bridgeRecord      = "bridge"
	forwardRecord     = "ip-forward"
	rulesRecord       = "nat"
	kubeProxyRecord   = "kube-proxy"
	routesRecord      = "routes" // only where there are other nodes
)

func isNetwork(id string) bool {
	return slices.Contains([]string{bridgeRecord, forwardRecord, rulesRecord, kubeProxyRecord}, id)
}

// makePlan decides what is done on this machine, and changes nothing. What an earlier
// node has left is planned as it is going to be once that is taken back.
func makePlan(ctx context.Context, p Paths, c Cluster, o Options, h *blocker.Host) (blocker.Plan, error) {
	plan, err := blocker.Make(ctx, h)
	if err != nil {
		return plan, err
	}
	if o.Network == NetworkNone {
		plan.Settings.Network.Egress = config.Egress{Way: config.NoEgress}
		plan.Choose(blocker.Egress, "none: pods reach nothing outside of the cluster", "--network=none asks for it")
	}
	j := p.journal()
	const builtIn = "programs have these places built in"
	var passing directoriesChange
	made := journal.Again(j, directoriesRecord, directoriesChange{p.missing(c.distribution())})
	made.Made = slices.DeleteFunc(made.Made, func(dir string) bool {
		covered := plan.Covered(dir)
		if covered {
			passing.Made = append(passing.Made, dir)
		}
		return covered
	})
	if len(passing.Made) > 0 {
		plan.Mount(directoriesRecord, passing, builtIn)
	}
	if len(made.Made) > 0 {
		plan.Change(directoriesRecord, made, builtIn)
	}
	plan.Mount("own-directories", binding(p.bound(c.distribution())), builtIn)
	for _, dir := range c.distribution().covered {
		plan.Mount("covered", blocker.Cover{Dir: dir, Staging: p.run("cover", filepath.Base(dir))}, "what programs make there ends with the node")
	}
	cgroups, err := newCgroupsChange()
	if err != nil {
		return plan, err
	}
	plan.Change(cgroupsRecord, cgroups, "the pods' cgroups are below it")
	plan.Change(bridgeRecord, bridgeChange{Name: Bridge, cluster: c, mtu: plan.Settings.Network.MTU}, "pods are connected by it, and the apiserver listens there")
	switch before := journal.Again(j, forwardRecord, forwarding()); {
	case before.Before == "" || before.Before == "1":
	case userns.Cgroup() != "": // this is Linux
		plan.Mount(forwardRecord, before, "packets pass between pods and the world; it is the node's own network's")
	case h.Settings.UserNamespace && probe.Sysctl("net.ipv4.ip_forward", "1") != nil:
		plan.Mount(forwardRecord, forwardCover{p.etc("ip_forward")}, "the bridge plugin insists on writing there; pods leave by a proxy")
	default:
		plan.Change(forwardRecord, before, "packets pass between pods and the world")
	}
	if backend := backendOf(plan.Settings.Network); backend != "" {
		reason := "egress: " + plan.Value(blocker.Egress)
		if plan.Settings.Network.Bridged != "" {
			reason += "; the bridge: " + plan.Value(blocker.Bridge)
		}
		plan.Change(rulesRecord, journal.Again(j, rulesRecord, newNatChange(backend)), reason)
	}
	err = planServices(&plan, p, c, o, filepath.Join(h.Programs, kubeProxy))
	return plan, err
}

// planServices decides who serves Services: what the kernel could, the plan says so far.
func planServices(plan *blocker.Plan, p Paths, c Cluster, o Options, program string) error {
	mode := plan.Settings.Network.Services
	inUserspace := func(reason string) {
		plan.Settings.Network.Services = config.ServiceProxy
		plan.Choose(blocker.Services, "a proxy in userspace", reason)
	}
	switch why := withoutKubeProxy(p, c, o, mode); {
	case !o.has(servicesAddOn):
		plan.Settings.Network.Services = ""
		plan.Choose(blocker.Services, "nobody serves them", "--disable services")
	case mode != config.ServiceProxy && c.Joined() && !c.KubeProxy:
		inUserspace("a node that has joined has its own DNS server at the address of the Service")
	case c.Joined() && c.KubeProxy && (mode == config.ServiceProxy || why != ""):
		return hint.Add(fmt.Errorf("k3s lets the kernel serve Services on all nodes of the cluster of %s, as that said when it was asked last, and here it cannot: %s", c.Server, cmp.Or(why, plan.Explain(blocker.Services))),
			"on the server: k3s9p down; k3s9p up --services=proxy")
	case mode == config.ServiceProxy:
	case why != "":
		inUserspace(why)
	default:
		plan.Change(kubeProxyRecord, kubeProxyChange{Mode: mode, Program: program}, "the kernel serves Services")
	}
	return nil
}

// withoutKubeProxy is why kube-proxy does not serve Services though it could in this mode,
// or empty.
func withoutKubeProxy(p Paths, c Cluster, o Options, mode string) string {
	switch refusal := c.distribution().refusesKubeProxy(mode); {
	case mode == config.ServiceProxy:
		return ""
	case o.Services == ServicesProxy:
		return "--services=proxy asks for it"
	case refusal != "":
		return refusal
	case othersServices(p):
		return "a kube-proxy of somebody else has its rules here"
	}
	return ""
}

// settingsOf are the choices for a node on a machine without any blocker.
func settingsOf(p Paths, c Cluster, bundle string) config.Settings {
	s := config.Default()
	s.Containerd.Root, s.Containerd.State = p.containerd(), filepath.Dir(p.Containerd())
	s.Containerd.Networks = p.etc("cni")
	// Plugins of the machine may answer, and be without the patches.
	s.Containerd.Plugins = c.distribution().plugins(p, bundle)
	s.Network.State = p.run("cni", "networks")
	if pods := c.PodCIDR(); pods.IsValid() {
		s.Network.PodCIDR = pods.String()
	}
	s.Kubelet.ClientCA, s.Kubelet.DNS = p.pkiFile("ca.crt"), c.DNS().String()
	s.Kubelet.Cgroup = cgroup
	c.distribution().settings(&s, p)
	return s
}

// hostOf is the machine as package blocker looks at it.
func hostOf(p Paths, c Cluster, bundle string) *blocker.Host {
	d := c.distribution()
	return &blocker.Host{
		Data: p.Data, Programs: d.bin(p, bundle), Plugins: d.plugins(p, bundle), Sockets: p.sockets(),
		Places: p.places(d), Memory: memoryNeeded(c), Settings: settingsOf(p, c, bundle),
	}
}

// memoryNeeded is, in bytes, with how much memory a node starts pods: with less its
// kubelet sees fewer than the 100 MiB available that it evicts at. Tried in gVisor, with
// three pods: docs/measured.md.
func memoryNeeded(c Cluster) int64 {
	if c.Joined() {
		return 512 << 20
	}
	return 768 << 20
}

// taken returns an error if something that the node will make is there already and
// was made by somebody else.
func taken(p Paths) error {
	if _, err := netlink.LinkByName(Bridge); err == nil && !p.journal().Has(bridgeRecord) {
		return hint.Add(fmt.Errorf("there is a network device %s already, and it is not this node's", Bridge),
			"another cluster on this machine has made it: stop that, or ip link delete %s", Bridge)
	}
	if p.journal().Has(cgroupsRecord) {
		return nil
	}
	for _, dir := range cgroupsBelow(cgroupDirectories(cgroup)) {
		if list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil && len(list) > 0 {
			return hint.Add(fmt.Errorf("there are processes in the cgroup %s, and they are not this node's", dir),
				"another cluster on this machine has made it: stop that")
		}
	}
	return nil
}
