package node

import (
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
)

// The changes of the machine that every node makes, by the names of their records in
// the journal.
const (
	directoriesRecord = "directories"
	cgroupsRecord     = "cgroups"
	bridgeRecord      = "bridge"
	forwardRecord     = "ip-forward"
	rulesRecord       = "nat"
)

func isNetwork(id string) bool {
	return slices.Contains([]string{bridgeRecord, forwardRecord, rulesRecord}, id)
}

// makePlan decides what is done on this machine, and changes nothing. What an earlier
// node has left is planned as it is going to be once that is taken back.
func makePlan(ctx context.Context, p Paths, c Cluster, h *blocker.Host) (blocker.Plan, error) {
	plan, err := blocker.Make(ctx, h)
	if err != nil {
		return plan, err
	}
	j := p.journal()
	const builtIn = "programs have these places built in"
	if made := journal.Again(j, directoriesRecord, directoriesChange{p.missing()}); len(made.Made) > 0 {
		plan.Change(directoriesRecord, made, builtIn)
	}
	plan.Mount("own-directories", binding(p.bound()), builtIn)
	plan.Change(cgroupsRecord, cgroupsChange{cgroup}, "the pods' cgroups are below it")
	plan.Change(bridgeRecord, bridgeChange{Name: Bridge, cluster: c, mtu: plan.Settings.Network.MTU}, "pods are connected by it, and the apiserver listens there")
	if before := journal.Again(j, forwardRecord, forwarding()); before.Before != "" && before.Before != "1" {
		plan.Change(forwardRecord, before, "packets pass between pods and the world")
	}
	if egress := plan.Settings.Network.Egress; egress.Way != config.NoEgress {
		plan.Change(rulesRecord, journal.Again(j, rulesRecord, newNatChange(egress.Backend)), "pods reach what is outside of the cluster: "+plan.Value(blocker.Egress))
	}
	return plan, nil
}

// settingsOf are the choices for a node on a machine without any blocker.
func settingsOf(p Paths, c Cluster, programs string) config.Settings {
	s := config.Default()
	s.Containerd.Root, s.Containerd.State = p.containerd(), filepath.Dir(p.Containerd())
	s.Containerd.Networks = p.etc("cni")
	// Plugins of the machine may answer, and be without the patches.
	s.Containerd.Plugins = filepath.Join(programs, "cni")
	s.Network.PodCIDR, s.Network.State = c.PodCIDR().String(), p.run("cni", "networks")
	s.Kubelet.ClientCA, s.Kubelet.DNS = p.pkiFile("ca.crt"), c.DNS().String()
	s.Kubelet.Cgroup = cgroup
	return s
}

// hostOf is the machine as package blocker looks at it.
func hostOf(p Paths, c Cluster, programs string) *blocker.Host {
	return &blocker.Host{
		Data: p.Data, Programs: filepath.Join(programs, "bin"), Plugins: filepath.Join(programs, "cni"), Sockets: p.sockets(),
		Settings: settingsOf(p, c, programs),
	}
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
