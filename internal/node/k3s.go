package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/hint"
	"k3s9p/internal/probe"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/supervisor"
)

// k3s is the program that has the datastore, the control plane, the kubelet and the client
// of containerd in it; it starts containerd.
const k3s = k3sName

// k3sDistribution is k3s, rebuilt with the patches. What it makes outside of its data
// directory it makes in directories of the node, and the pod network, the way out of it
// and Services are the node's own.
func k3sDistribution() distribution {
	return distribution{
		steps:     (*Node).k3sSteps,
		configure: (*Node).configureK3s,
		endPods:   (*Node).endK3s,
		server:    []string{k3s},
		admission: k3sAdmission(),

		refusesKubeProxy: func(mode string) string {
			if mode == probe.KubeProxyNftables {
				return ""
			}
			return "the rules that the kube-proxy in k3s writes by " + mode + " would stay"
		},
		unpacked: 4, // its file, and three times as much that this unpacks
		bin:      func(p Paths, _ string) string { return p.k3sBin() },
		plugins:  func(p Paths, _ string) string { return p.k3s("data", "cni") },
		bound: func(p Paths) map[string]string {
			return map[string]string{
				"/run/k3s/containerd": filepath.Dir(p.Containerd()),
				"/etc/rancher/node":   p.k3s("node"), // the password of the node
			}
		},
		covered:  []string{k3sSettings}, // a link to the kubeconfig; config.yaml, registries.yaml
		settings: func(s *config.Settings, p Paths) { s.Containerd.Root = p.k3s("agent", "containerd") },
		fits:     fitsK3s,
		listening: []listener{
			{k3s, "tcp", ":10250"}, {k3s, "tcp", "127.0.0.1:10248"}, {k3s, "tcp", "127.0.0.1:10010"},
			// The apiserver behind the supervisor, or the agent's way to it.
			{k3s, "tcp", fmt.Sprintf("127.0.0.1:%d", port+1)},
		},
		listeningServers: []listener{
			{k3s, "tcp", fmt.Sprintf(":%d", port)},
			{k3s, "tcp", "127.0.0.1:10257"}, {k3s, "tcp", "127.0.0.1:10258"}, {k3s, "tcp", "127.0.0.1:10259"},
		},
	}
}

// k3sSettings is where k3s looks for what is set by files.
const k3sSettings = "/etc/rancher/k3s"

// k3s is the data directory of k3s, and k3sBin that of the programs that it has unpacked.
func (p Paths) k3s(elem ...string) string { return p.at(append([]string{k3s}, elem...)...) }
func (p Paths) k3sBin() string            { return p.k3s("data", "current", "bin") }

// ownFlags are those of k3s that k3s9p has its own for, because it needs to know.
var ownFlags = map[string]string{
	"data-dir": "--data-dir", "d": "--data-dir", "node-name": "--node-name", "cluster-cidr": "--cluster-cidr", "service-cidr": "--service-cidr",
	"write-kubeconfig": "k3s9p kubeconfig", "o": "k3s9p kubeconfig", "https-listen-port": "--publish PORT:NODEPORT for ports of Services", "config": "/etc/rancher/k3s/config.yaml", "c": "/etc/rancher/k3s/config.yaml",
	"server": "k3s9p join --server", "s": "k3s9p join --server", "token": joinWithToken, "t": joinWithToken, "token-file": joinWithToken,
}

const joinWithToken = "k3s9p token create makes tokens, and k3s9p join --token takes them"

// fitsK3s returns an error about what k3s is not started as, or with.
func fitsK3s(o Options, c Cluster, rung Rung) error {
	if rung.Rootless {
		return hint.Add(fmt.Errorf("this file carries k3s, which k3s9p starts with the privileges of root only, and it would run %s", rung), "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it; a k3s9p of DISTRO=kubernetes needs neither")
	}
	for _, arg := range o.K3sArgs {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if own, ok := ownFlags[name]; ok && strings.HasPrefix(arg, "-") {
			return hint.Add(fmt.Errorf("k3s9p tells k3s its --%s itself", name), "%s", own)
		}
	}
	return nil
}

// noK3sArgs returns an error about arguments for k3s where there is none.
func noK3sArgs(o Options, c Cluster, _ Rung) error {
	if len(o.K3sArgs) == 0 {
		return nil
	}
	return hint.Add(fmt.Errorf("%s is for k3s, and this file carries %s", strings.Join(o.K3sArgs, " "), c.Distribution), "--kubelet-arg, --kube-apiserver-arg and the like are its flags; DISTRO=k3s go tool mage build makes a k3s9p with k3s")
}

// k3sSteps bring up a node of the distribution k3s.
func (n *Node) k3sSteps() []step {
	return []step{
		{title: "unpack the programs", do: n.unpackK3s},
		{title: "join the cluster", do: n.join(n.enrollK3s), of: joined},
		{title: "check and fix the machine", do: n.fix},
		{title: "make the pod network", do: n.podNetwork},
		{title: "add routes to the other nodes", do: plain(n.syncNodes, n.publishServer), of: joined},
		{title: "start k3s as an agent", do: plain(n.letKubeProxy, n.startK3s), of: joined},
		{title: "start k3s", do: plain(n.letKubeProxy, n.startK3s, n.k3sServes, n.publishServer, n.addOns, n.k3sCredentials), of: servers},
		{title: "wait for the container runtime", do: plain(n.runtimeReady)},
		{title: "start DNS and Services", do: plain(n.dns, n.openServices)},
		{title: "wait until the node is Ready", do: plain(n.ready, n.register), of: servers},
		{title: "wait until the node is Ready", do: plain(n.ready, n.keepCertificate), of: joined},
	}
}

// unpackK3s unpacks k3s, and lets that unpack itself.
func (n *Node) unpackK3s(ctx context.Context) (string, error) {
	result, err := n.unpack(ctx)
	if err != nil {
		return "", err
	}
	n.shareAddOns()
	cmd := exec.CommandContext(ctx, n.k3sFile(), "ctr", "--version")
	cmd.Env = n.k3sEnvironment()
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("let k3s unpack itself to %s: %w: %s", n.paths.k3s("data"), err, oneLine(output))
	}
	return result, n.removeOtherK3s()
}

// k3sFile is k3s as it was built: the file that unpacks itself.
func (n *Node) k3sFile() string { return filepath.Join(n.bundle, k3s) }

// removeOtherK3s removes what other versions of k3s have unpacked.
func (n *Node) removeOtherK3s() error {
	current, err := os.Readlink(n.paths.k3s("data", "current"))
	if err != nil {
		return fmt.Errorf("find what k3s has unpacked: %w", err)
	}
	entries, err := os.ReadDir(n.paths.k3s("data"))
	for _, entry := range entries {
		if keep := []string{"current", "cni", ".lock", filepath.Base(current)}; !slices.Contains(keep, entry.Name()) {
			err = errors.Join(err, rmtree.Tree(n.paths.k3s("data", entry.Name())))
		}
	}
	return err
}

// k3sEnvironment is that of k3s. What is for who pulls images it gives to containerd
// (pkg/agent/containerd). The service manager that has started k3s9p is none of its own:
// it would let that make the cgroups of pods.
func (n *Node) k3sEnvironment() []string {
	env := slices.DeleteFunc(n.environment(), func(entry string) bool { return strings.HasPrefix(entry, "INVOCATION_ID=") })
	for _, entry := range n.pullVariables() {
		env = append(env, "CONTAINERD_"+entry)
	}
	return append(env, "K3S_DATA_DIR="+n.paths.k3s())
}

// configureK3s writes what k3s is told by files, and makes the arguments that tell it the
// rest. Those of the user come last, where they win.
func (n *Node) configureK3s() error {
	for _, f := range n.plan.Findings {
		if f.ID == "sockets" && f.Answer == blocker.Found {
			return hint.Add(fmt.Errorf("the datastore in k3s listens on a socket beside its database, and the filesystem of %s takes none: %s", n.paths.Data, f.Evidence),
				"--data-dir names a directory on another filesystem; a k3s9p of DISTRO=kubernetes runs on this one")
		}
	}
	node := config.K3sNode{Data: n.paths.k3s(), Name: n.cluster.NodeName, Address: n.cluster.Address().String(), Confined: true}
	if n.cluster.Joined() {
		node.Server, node.TokenFile = n.cluster.Server, n.paths.k3sToken()
	} else {
		node.ClusterCIDR, node.ServiceCIDR = n.cluster.ClusterCIDR.String(), n.cluster.ServiceCIDR.String()
		node.Disable, node.Kubeconfig = n.withoutK3s, n.paths.Kubeconfig()
	}
	if n.byKubeProxy() {
		for _, flag := range n.kubeProxyFlags() {
			node.KubeProxy = append(node.KubeProxy, strings.TrimLeft(flag, "-"))
		}
	}
	told, err := n.plan.Settings.K3s(node)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(told.Files)) {
		if err := writeFile(name, told.Files[name], 0o600); err != nil {
			return err
		}
	}
	n.k3sArgs = told.Args
	if bits := n.cluster.nodeBits(); bits != defaultNodeBits && !n.cluster.Joined() {
		n.k3sArgs = append(n.k3sArgs, fmt.Sprintf("--kube-controller-manager-arg=node-cidr-mask-size=%d", bits))
	}
	for flag, args := range map[string][]string{
		"--kubelet-arg=": n.options.KubeletArgs, "--kube-apiserver-arg=": n.options.APIServerArgs,
		"--kube-controller-manager-arg=": n.options.ControllerManagerArgs, "--kube-scheduler-arg=": n.options.SchedulerArgs,
	} {
		for _, arg := range args {
			n.k3sArgs = append(n.k3sArgs, flag+strings.TrimLeft(arg, "-"))
		}
	}
	n.k3sArgs = append(n.k3sArgs, n.options.K3sArgs...)
	return errors.Join(n.offerImages(), n.linkLogs())
}

// offerImages puts the image archives where k3s looks for them before it starts the
// kubelet: those of the bundle, and those of the user.
func (n *Node) offerImages() error {
	for name, dir := range map[string]string{"k3s9p": filepath.Join(n.bundle, "images"), "k3s9p-user": n.options.Images} {
		link := n.paths.k3s("agent", "images", name)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if dir == "" {
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(dir, link)); err != nil {
			return fmt.Errorf("offer the images in %s to k3s: %w", dir, err)
		}
	}
	if n.options.Images == "" {
		return nil
	}
	archives, err := archivesIn(n.options.Images)
	for _, archive := range archives {
		n.imported[archive] = stamp(archive)
	}
	return err
}

// linkLogs shows the log of containerd, whose place k3s has built in, among the others.
func (n *Node) linkLogs() error {
	link := filepath.Join(n.paths.Logs(), containerd+".log")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if n.plan.Settings.Containerd.Tmpfs > 0 {
		return nil // nobody sees it outside of the node's mount namespace
	}
	return os.Symlink(filepath.Join("..", k3s, "agent", containerd, containerd+".log"), link)
}

func (n *Node) startK3s(context.Context) error {
	n.started = time.Now()
	return n.supervisor.Start(supervisor.Program{Name: k3s, Args: append([]string{n.k3sFile()}, n.k3sArgs...), Env: n.k3sEnvironment(), Grace: 20 * time.Second})
}

// k3sServes waits until the apiserver in k3s is ready.
func (n *Node) k3sServes(ctx context.Context) error {
	return n.supervisor.Await(ctx, func(ctx context.Context) error {
		client, err := newClient(n.paths.Kubeconfig())
		if err == nil {
			err = client.get(ctx, "/readyz", nil)
		}
		if err == nil {
			n.client = client
		}
		return err
	}, k3s)
}

// k3sCredentials makes the kubeconfig of the DNS server, which is no administrator: it is
// signed by the authority that k3s has for clients.
func (n *Node) k3sCredentials(context.Context) error {
	if !n.options.has(dnsAddOn) {
		return nil
	}
	authority, err := tls.LoadX509KeyPair(n.paths.k3s("server", "tls", "client-ca.crt"), n.paths.k3s("server", "tls", "client-ca.key"))
	if err != nil {
		return fmt.Errorf("read the authority of k3s for clients: %w", err)
	}
	cluster, err := clusterIn(n.paths.Kubeconfig())
	if err != nil {
		return err
	}
	config, err := kubeconfigBy(authority, dnsUser, cluster)
	if err != nil {
		return err
	}
	return writeFile(n.paths.conf(coredns), config, 0o600)
}

// clusterIn is the one of a kubeconfig.
func clusterIn(file string) (clientcmd.Cluster, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return clientcmd.Cluster{}, err
	}
	var config clientcmd.Config
	if err := yaml.Unmarshal(data, &config); err != nil || len(config.Clusters) == 0 {
		return clientcmd.Cluster{}, errors.Join(fmt.Errorf("%s names no cluster", file), err)
	}
	return config.Clusters[0].Cluster, nil
}

// endK3s ends k3s, and containerd with it, and starts containerd without it, for who ends
// the pods.
func (n *Node) endK3s() {
	if !n.runs(k3s) {
		return
	}
	n.supervisor.Stop(k3s)
	err := n.start(containerd, 10*time.Second, "--config="+n.paths.k3s("agent", "etc", containerd, "config.toml"))
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = n.runtimeReady(ctx)
	}
	if err != nil {
		n.log.Warn("start containerd to stop the pods; what is left of them is killed", "error", err)
	}
}

// shareAddOns settles who does the add-ons. Those of k3s are pods of images, which are not
// in the bundle: the node does DNS and storage itself, as with the other distribution, and
// nobody the metrics.
func (n *Node) shareAddOns() {
	n.withoutK3s = []string{"coredns", "local-storage", "metrics-server"}
	if n.options.has(metricsAddOn) {
		n.lacking = map[string]string{metricsAddOn: "none: the image of k3s's metrics-server is not in this file"}
	}
	n.options.Disable = append(n.options.Disable, metricsAddOn)
}
