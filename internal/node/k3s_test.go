package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/probe"
)

// k3sNode is a node of k3s in a data directory of its own, with a plan for a sandbox.
func k3sNode(t *testing.T, o Options) *Node {
	t.Helper()
	n := &Node{paths: Paths{t.TempDir()}, options: o, imported: make(map[string]string), cluster: Cluster{
		Distribution: k3sName, NodeName: "n", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}}
	n.bundle = n.paths.at("bundle", "0123")
	n.plan.Settings = settingsOf(n.paths, n.cluster, n.bundle)
	n.plan.Settings.Network.Services = config.ServiceProxy
	if err := os.MkdirAll(n.paths.Logs(), 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// A node of each distribution has the steps of that, and the network, the fixes and
// Services are the same steps.
func TestStepsOfDistributions(t *testing.T) {
	titlesOf := func(c Cluster) (all []string) {
		for _, s := range c.distribution().steps(&Node{cluster: c}) {
			if s.isOf(c) {
				all = append(all, s.title)
			}
		}
		return all
	}
	titles := func(name string) []string { return titlesOf(Cluster{Distribution: name}) }
	ours, theirs := titles("kubernetes"), titles(k3sName)
	for _, title := range []string{"unpack the programs", "check and fix the machine", "make the pod network", "wait until the node is Ready"} {
		if !slices.Contains(ours, title) || !slices.Contains(theirs, title) {
			t.Errorf("%q is not a step of both: %q, %q", title, ours, theirs)
		}
	}
	if slices.Contains(ours, "start k3s") || !slices.Contains(theirs, "start k3s") || slices.Contains(theirs, "start the control plane") {
		t.Errorf("the steps are %q, and with k3s %q", ours, theirs)
	}
	if slices.Index(theirs, "make the pod network") > slices.Index(theirs, "start k3s") {
		t.Errorf("k3s starts before the bridge has its address: %q", theirs)
	}
	agent := titlesOf(Cluster{Distribution: k3sName, Server: "https://192.0.2.2:6443"})
	want := []string{"unpack the programs", "join the cluster", "check and fix the machine", "make the pod network", "add routes to the other nodes",
		"start k3s as an agent", "wait for the container runtime", "start DNS and Services", "wait until the node is Ready"}
	if !slices.Equal(agent, want) {
		t.Errorf("the steps of an agent are %q", agent)
	}
}

// What k3s is told: the plan's choices, what the user sets with flags of k3s9p and, last,
// where it wins, what comes after --.
func TestConfigureK3s(t *testing.T) {
	images := t.TempDir()
	if err := os.WriteFile(filepath.Join(images, "web.tar"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n := k3sNode(t, Options{Images: images, KubeletArgs: []string{"max-pods=20"}, APIServerArgs: []string{"--v=2"}, K3sArgs: []string{"--node-label", "zone=a"}, Disable: []string{"services"}})
	n.plan.Settings.Kubelet.AllowCgroupV1 = true
	n.shareAddOns()
	if err := n.configureK3s(); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{
		"--data-dir=" + n.paths.at("k3s"), "--node-name=n", "--node-ip=10.42.0.1", "--flannel-backend=none", "--disable-kube-proxy",
		"--disable=traefik,servicelb,coredns,local-storage,metrics-server", "--write-kubeconfig=" + n.paths.Kubeconfig(),
		"--pause-image=k3s9p.local/pause:1", "--kubelet-arg=cgroup-root=/k3s9p", "--kubelet-arg=fail-cgroupv1=false",
		"--kubelet-arg=max-pods=20", "--kube-apiserver-arg=v=2",
	} {
		if !slices.Contains(n.k3sArgs, arg) {
			t.Errorf("%q is not in %q", arg, n.k3sArgs)
		}
	}
	if last := n.k3sArgs[len(n.k3sArgs)-2:]; n.k3sArgs[0] != "server" || !slices.Equal(last, n.options.K3sArgs) {
		t.Errorf("k3s gets %q", n.k3sArgs)
	}
	if slices.ContainsFunc(n.k3sArgs, func(arg string) bool { return strings.Contains(arg, "node-cidr-mask-size") }) {
		t.Errorf("a node has 256 addresses by default, and k3s gets %q", n.k3sArgs)
	}
	for _, file := range []string{"agent/etc/containerd/config-v3.toml.d/k3s9p.toml", "agent/etc/cni/net.d/10-k3s9p.conflist", "agent/images/k3s9p-user/web.tar"} {
		if _, err := os.Stat(n.paths.at("k3s", file)); err != nil {
			t.Error(err)
		}
	}
	if !n.options.has(dnsAddOn) || n.options.has(metricsAddOn) || !n.options.has(storageAddOn) {
		t.Errorf("the node itself does not %v", n.options.Disable)
	}
	for _, addOn := range n.describeAddOns() {
		if want := map[string]string{dnsAddOn: "CoreDNS at 10.43.0.10", metricsAddOn: "none: the image of k3s's metrics-server", servicesAddOn: "disabled", storageAddOn: "StorageClass local-path"}[addOn.Name]; !strings.HasPrefix(addOn.How, want) {
			t.Errorf("%s is said to be %q", addOn.Name, addOn.How)
		}
	}
	if len(n.imported) != 1 {
		t.Errorf("%v would be imported a second time", images)
	}
	if log, err := os.Readlink(filepath.Join(n.paths.Logs(), "containerd.log")); err != nil || filepath.Join(n.paths.Logs(), log) != n.paths.at("k3s", "agent", "containerd", "containerd.log") {
		t.Errorf("the log of containerd is a link to %s, %v", log, err)
	}

	// The same directory again, without what the options had.
	n.options = Options{}
	n.cluster.ClusterCIDR = netip.MustParsePrefix("10.42.0.0/25")
	n.plan.Settings.Containerd.Tmpfs = 1 << 30
	n.plan.Settings.Network.Services = probe.KubeProxyNftables
	if err := n.configureK3s(); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(n.k3sArgs, "--kube-controller-manager-arg=node-cidr-mask-size=25") || slices.Contains(n.k3sArgs, "zone=a") {
		t.Errorf("k3s gets %q", n.k3sArgs)
	}
	if !slices.Contains(n.k3sArgs, "--kube-proxy-arg=proxy-mode=nftables") || slices.Contains(n.k3sArgs, "--disable-kube-proxy") {
		t.Errorf("where the kernel serves Services k3s gets %q", n.k3sArgs)
	}
	for _, gone := range []string{n.paths.at("k3s", "agent", "images", "k3s9p-user"), filepath.Join(n.paths.Logs(), "containerd.log")} {
		if _, err := os.Lstat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

// Where the data directory takes no Unix sockets, k3s is refused before it starts.
func TestK3sWithoutSockets(t *testing.T) {
	n := k3sNode(t, Options{})
	n.plan.Findings = []blocker.Finding{{ID: "sockets", Answer: blocker.Found, Evidence: "bind: no such device or address"}}
	if err := n.configureK3s(); err == nil || !strings.Contains(err.Error(), "takes none: bind: no such device") || !strings.Contains(err.Error(), "hint: --data-dir") {
		t.Errorf("%v", err)
	}
	if _, err := blocker.Find("sockets"); err != nil {
		t.Error(err)
	}
}

// The plan's places, programs and ports are those of k3s.
func TestPlanOfK3s(t *testing.T) {
	n := k3sNode(t, Options{})
	host := hostOf(n.paths, n.cluster, n.bundle)
	if host.Programs != n.paths.at("k3s", "data", "current", "bin") || host.Settings.Containerd.Root != n.paths.at("k3s", "agent", "containerd") {
		t.Errorf("programs in %s, images in %s", host.Programs, host.Settings.Containerd.Root)
	}
	if plugins := host.Settings.Containerd.Plugins; plugins != n.paths.at("k3s", "data", "cni") {
		t.Errorf("CNI plugins in %s", plugins)
	}
	bound := n.paths.bound(n.distribution())
	if bound["/run/k3s/containerd"] != filepath.Dir(n.paths.Containerd()) || bound["/var/lib/kubelet"] != n.paths.kubelet() {
		t.Errorf("bound are %v", bound)
	}
	_, err := os.Lstat("/etc/rancher/k3s")
	if missing := n.paths.missing(n.distribution()); slices.Contains(missing, "/etc/rancher/k3s") != errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directories that have to be made are %q", missing)
	}
	if _, ok := n.paths.bound(kubernetesDistribution())["/run/k3s/containerd"]; ok {
		t.Error("the other distribution has the places of k3s")
	}
	ports := ownPorts(n.options, n.cluster)
	if !slices.Contains(ports, listener{k3s, "tcp", ":6443"}) || !slices.Contains(ports, listener{k3s, "tcp", ":10250"}) || slices.ContainsFunc(ports, func(l listener) bool { return l.program != k3s }) {
		t.Errorf("the ports are %v", ports)
	}
	if os.Geteuid() != 0 {
		t.Skip("what follows tries what only root may")
	}
	plan, err := makePlan(t.Context(), n.paths, n.cluster, n.options, host)
	if err != nil {
		t.Fatal(err)
	}
	if !plan.Covered("/etc/rancher/k3s/k3s.yaml") {
		t.Error("what k3s makes in /etc/rancher/k3s would stay there")
	}
	if plan.Settings.Network.Services == probe.KubeProxyIptables {
		t.Errorf("Services: %s, changes %v", plan.Explain(blocker.Services), plan.Changes)
	}
}

// Who serves Services: kube-proxy where the kernel can and its rules can be taken back, and
// with k3s on all nodes or on none.
func TestWhoServesServices(t *testing.T) {
	type server int // of the node, and what it has said
	const (
		none server = iota
		withProxy
		withKubeProxy
	)
	for name, c := range map[string]struct {
		mode, distribution string
		o                  Options
		server             server
		services, reason   string
	}{
		"kubernetes":                 {probe.KubeProxyIptables, "kubernetes", Options{}, none, "iptables", ""},
		"k3s":                        {probe.KubeProxyNftables, k3sName, Options{}, none, "nftables", ""},
		"k3s by iptables":            {probe.KubeProxyIptables, k3sName, Options{}, none, config.ServiceProxy, "the rules that the kube-proxy in k3s writes by iptables would stay"},
		"k3s in gVisor":              {config.ServiceProxy, k3sName, Options{}, none, config.ServiceProxy, ""},
		"--services=proxy":           {probe.KubeProxyNftables, k3sName, Options{Services: ServicesProxy}, none, config.ServiceProxy, "--services=proxy asks for it"},
		"--disable services":         {probe.KubeProxyNftables, k3sName, Options{Disable: []string{servicesAddOn}}, none, "", "--disable services"},
		"an agent":                   {probe.KubeProxyNftables, k3sName, Options{}, withKubeProxy, "nftables", ""},
		"an agent of a proxy":        {probe.KubeProxyNftables, k3sName, Options{}, withProxy, config.ServiceProxy, "its own DNS server"},
		"an agent that cannot":       {config.ServiceProxy, k3sName, Options{}, withKubeProxy, "error", "here it cannot"},
		"an agent by iptables":       {probe.KubeProxyIptables, k3sName, Options{}, withKubeProxy, "error", "by iptables would stay"},
		"a node of the other's kind": {probe.KubeProxyNftables, "kubernetes", Options{}, withProxy, config.ServiceProxy, "its own DNS server"},
	} {
		t.Run(name, func(t *testing.T) {
			byKernel := c.services == probe.KubeProxyNftables || c.services == probe.KubeProxyIptables
			if byKernel && othersServices(Paths{t.TempDir()}) {
				t.Skip("a kube-proxy of somebody else has its rules here")
			}
			plan := blocker.Plan{}
			plan.Settings.Network.Services = c.mode
			cluster := Cluster{Distribution: c.distribution}
			if c.server != none {
				cluster.Server, cluster.KubeProxy = "https://192.0.2.2:6443", c.server == withKubeProxy
			}
			err := planServices(&plan, Paths{t.TempDir()}, cluster, c.o, "/kube-proxy")
			if c.services == "error" {
				if err == nil || !strings.Contains(err.Error(), c.reason) || !strings.Contains(err.Error(), "hint: on the server: k3s9p down; k3s9p up --services=proxy") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || plan.Settings.Network.Services != c.services || !strings.Contains(plan.Explain(blocker.Services), c.reason) {
				t.Errorf("%q, %s, %v", plan.Settings.Network.Services, plan.Explain(blocker.Services), err)
			}
			if recorded := slices.ContainsFunc(plan.Changes, func(c blocker.Change) bool { return c.ID == kubeProxyRecord }); recorded != byKernel {
				t.Errorf("the changes are %v", plan.Changes)
			}
		})
	}
}

func TestFitsK3s(t *testing.T) {
	of := func(distribution string) Cluster { return Cluster{Distribution: distribution} }
	for i, c := range []struct {
		o       Options
		c       Cluster
		rung    Rung
		refused string
	}{
		{Options{}, of(k3sName), Rung{}, ""},
		{Options{K3sArgs: []string{"--node-label", "a=b", "--node-label=data-dir"}}, of(k3sName), Rung{}, ""},
		{Options{K3sArgs: []string{"--data-dir=/x"}}, of(k3sName), Rung{}, "k3s9p tells k3s its --data-dir itself"},
		{Options{K3sArgs: []string{"-d", "/x"}}, of(k3sName), Rung{}, "k3s9p tells k3s its --d itself"},
		{Options{}, of(k3sName), Rung{Rootless: true, Why: "this process is not root"}, "with the privileges of root only"},
		{Options{}, Cluster{Distribution: k3sName, Server: "https://192.0.2.2:6443"}, Rung{}, ""},
		{Options{K3sArgs: []string{"--token=secret"}}, of(k3sName), Rung{}, "k3s9p tells k3s its --token itself"},
		{Options{K3sArgs: []string{"--debug"}}, of("kubernetes"), Rung{}, "--debug is for k3s, and this file carries kubernetes"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			err := c.c.distribution().fits(c.o, c.c, c.rung)
			if (err == nil) != (c.refused == "") || err != nil && (!strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "hint: ")) {
				t.Errorf("%v", err)
			}
		})
	}
}

// What another version of k3s has unpacked goes, what this one has unpacked stays.
func TestRemoveOtherK3s(t *testing.T) {
	n := k3sNode(t, Options{})
	data := n.paths.at("k3s", "data")
	for _, dir := range []string{"new/bin", "old/bin", "cni", "half-tmp"} {
		if err := os.MkdirAll(filepath.Join(data, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"current": "new", "previous": "old"} {
		if err := os.Symlink(filepath.Join(data, to), filepath.Join(data, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.removeOtherK3s(); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(data)
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if want := []string{"cni", "current", "new"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("there are %q, %v", left, err)
	}
}

// The programs that k3s has unpacked are found by who runs them, and what is for who pulls
// images reaches containerd only.
func TestProgramsOfK3s(t *testing.T) {
	n := k3sNode(t, Options{})
	kubectl := filepath.Join(n.paths.k3sBin(), "kubectl")
	if err := writeFile(kubectl, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if found, err := n.paths.Program("kubectl"); err != nil || found != kubectl {
		t.Errorf("kubectl is %s, %v", found, err)
	}
	t.Setenv("HTTPS_PROXY", "http://192.0.2.9:3128")
	t.Setenv("INVOCATION_ID", "0123")
	env := n.k3sEnvironment()
	for _, want := range []string{"CONTAINERD_HTTPS_PROXY=http://192.0.2.9:3128", "K3S_DATA_DIR=" + n.paths.at("k3s")} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in %q", want, env)
		}
	}
	if slices.ContainsFunc(env, func(entry string) bool {
		return strings.HasPrefix(entry, "HTTPS_PROXY=") || strings.HasPrefix(entry, "INVOCATION_ID=")
	}) {
		t.Errorf("k3s gets %q", env)
	}
}

// The DNS server asks as a user of its own, whom the authority of k3s for clients vouches
// for, and of the apiserver that the administrator's kubeconfig names.
func TestK3sCredentials(t *testing.T) {
	n := k3sNode(t, Options{})
	authority, key := newAuthority(t, "k3s-client-ca")
	admin, err := kubeconfigOf(clientcmd.Cluster{Server: "https://127.0.0.1:6443", CertificateAuthorityData: authority}, authority, key)
	if err != nil {
		t.Fatal(err)
	}
	tls := n.paths.at("k3s", "server", "tls")
	for name, data := range map[string][]byte{n.paths.Kubeconfig(): admin, filepath.Join(tls, "client-ca.crt"): authority, filepath.Join(tls, "client-ca.key"): key} {
		if err := writeFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.k3sCredentials(t.Context()); err != nil {
		t.Fatal(err)
	}
	if server, subject := userOf(t, n.paths.conf(coredns), authority); server != "https://127.0.0.1:6443" || subject.CommonName != dnsUser || len(subject.Organization) > 0 {
		t.Errorf("the DNS server asks %s, as %v", server, subject)
	}
	n.options.Disable = []string{dnsAddOn}
	n.paths = Paths{t.TempDir()}
	if err := n.k3sCredentials(t.Context()); err != nil {
		t.Errorf("without DNS: %v", err)
	}
}

// A directory that was covered can be removed after; one that is not covered, or not there,
// is no error.
func TestUncover(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	dir := filepath.Join(t.TempDir(), "covered")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with its mount namespace
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		if err != nil {
			done <- fmt.Errorf("a mount namespace: %w", err)
			return
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			done <- err
			return
		}
		if os.Remove(dir) == nil {
			done <- errors.New("a directory that is covered was removed")
			return
		}
		done <- errors.Join(uncover([]string{dir}), uncover([]string{dir}), os.Remove(dir), uncover([]string{dir}))
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
