package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"k3s9p/internal/config"
	"k3s9p/internal/probe"
)

// The program, and its user to the apiserver.
const (
	kubeProxy     = "kube-proxy"
	kubeProxyUser = "system:kube-proxy"
)

// byKubeProxy reports whether the kernel serves Services, and kube-proxy tells it how.
func (n *Node) byKubeProxy() bool {
	return n.options.has(servicesAddOn) && n.plan.Settings.Network.Services != config.ServiceProxy
}

// kubeProxyServes starts kube-proxy, and waits until the Service of the apiserver is
// there.
func (n *Node) kubeProxyServes(ctx context.Context) error {
	programs := n.distribution().server
	if start := n.distribution().startKubeProxy; start != nil {
		if !n.cluster.Joined() {
			// What its user may do is made by the apiserver at its start: who asks before is
			// refused, and asks again a second later.
			if err := n.supervisor.Await(ctx, n.controlPlaneReady, programs...); err != nil {
				return err
			}
		}
		if err := n.letKubeProxy(ctx); err != nil { // its rules are not recorded
			return err
		}
		if err := start(n); err != nil {
			return err
		}
		programs = append(programs, kubeProxy)
	}
	service := netip.AddrPortFrom(n.cluster.APIService(), 443).String()
	return n.supervisor.Await(ctx, func(context.Context) error { return dials("tcp", service) }, programs...)
}

func (n *Node) startKubeProxy() error {
	if err := n.userKubeconfig(kubeProxy, kubeProxyUser); err != nil {
		return err
	}
	args := append([]string{
		"--kubeconfig=" + n.paths.conf(kubeProxy),
		"--hostname-override=" + n.cluster.NodeName,
		"--cluster-cidr=" + n.cluster.ClusterCIDR.String(),
	}, n.kubeProxyFlags()...)
	return n.start(kubeProxy, 10*time.Second, args...)
}

// letKubeProxy makes what kube-proxy needs and does not make, and records the rules that it
// is going to write.
func (n *Node) letKubeProxy(context.Context) error {
	if !n.byKubeProxy() {
		return nil
	}
	// A process of the node reaches addresses of Services also where there is no default
	// route; the route ends with the bridge.
	bridge, err := netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("find the bridge: %w", err)
	}
	services := n.cluster.ServiceCIDR.Masked()
	err = netlink.RouteReplace(&netlink.Route{LinkIndex: bridge.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: services.Addr().AsSlice(), Mask: net.CIDRMask(services.Bits(), 32)}})
	if err != nil {
		return fmt.Errorf("add a route to %s by %s: %w", services, Bridge, err)
	}
	return n.plan.Apply(n.paths.journal(), func(id string) bool { return id == kubeProxyRecord })
}

// kubeProxyFlags are those of kube-proxy on a node that takes back what it has done.
func (n *Node) kubeProxyFlags() []string {
	args := []string{
		"--proxy-mode=" + n.plan.Settings.Network.Services,
		// The node's own address is that of the bridge, which nobody outside knows.
		"--nodeport-addresses=0.0.0.0/0",
		"--iptables-localhost-nodeports=false",
		"--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=",
		// These would be changes of the machine that stay.
		"--conntrack-max-per-core=0", "--conntrack-min=0",
		"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	}
	if !bridgedPacketsFiltered() {
		args = append(args, "--masquerade-all=true")
	}
	return args
}

// bridgedPacketsFiltered reports whether the answers of a pod to another one pass
// netfilter, so that they get the address of the Service again. Otherwise they have to
// go by way of the node, which masquerading sees to.
func bridgedPacketsFiltered() bool {
	value, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil && bytes.Equal(bytes.TrimSpace(value), []byte("1"))
}

// kubeProxyChange is the record of the rules that kube-proxy writes and leaves.
type kubeProxyChange struct {
	Mode    string `json:"mode"`
	Program string `json:"program"`
}

func (c kubeProxyChange) String() string { return "let kube-proxy write its rules, by " + c.Mode }

// Make does nothing: kube-proxy does it.
func (c kubeProxyChange) Make() error { return nil }

func (c kubeProxyChange) Undo(sameBoot bool) error {
	if !sameBoot {
		return nil
	}
	if c.Mode == probe.KubeProxyNftables {
		return removeKubeProxyTables()
	}
	if output, err := exec.Command(c.Program, "--cleanup").CombinedOutput(); err != nil {
		return fmt.Errorf("remove kube-proxy's rules: %w: %s", err, oneLine(output))
	}
	return nil
}

// othersServices reports whether a kube-proxy that is not this node's has rules here. They
// have the same names as those of ours, which clears up when it starts and is cleared up
// after at down.
func othersServices(p Paths) bool {
	if p.journal().Has(kubeProxyRecord) {
		return false
	}
	const chain = "KUBE-SERVICES" // of its mode iptables
	if conn, err := nftables.New(); err == nil {
		tables, _ := conn.ListTables()
		chains, _ := conn.ListChains()
		if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == kubeProxy }) ||
			slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Name == chain }) {
			return true
		}
	}
	legacy, err := os.ReadFile("/proc/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(legacy)), "nat") &&
		exec.Command("iptables-legacy", "--table=nat", "--numeric", "--list", chain).Run() == nil
}

func removeKubeProxyTables() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("talk to nf_tables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list the tables of nf_tables: %w", err)
	}
	for _, table := range tables {
		if table.Name == kubeProxy {
			conn.DelTable(table)
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove kube-proxy's tables: %w", err)
	}
	return nil
}
