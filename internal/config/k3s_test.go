package config

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

// sandbox are the choices in a gVisor sandbox with a 9p root, for a k3s that has its own
// pause image.
func sandbox() Settings {
	s := Default()
	s.Kubelet.AllowCgroupV1, s.Kubelet.ForeignDisk = true, true
	s.Containerd.UnprivilegedPorts = false
	s.Containerd.PauseImage = "docker.io/rancher/mirrored-pause:3.10.2"
	s.Network.MTU, s.Network.Services = 65535, ServiceProxy
	s.Network.Egress = Egress{Way: Proxy, Backend: "iptables-legacy"}
	return s
}

// parsed are the contents of files.
func parsed(t *testing.T, files map[string][]byte) map[string]map[string]any {
	t.Helper()
	all := make(map[string]map[string]any)
	for name, data := range files {
		var content map[string]any
		parse := toml.Unmarshal
		if strings.HasSuffix(name, ".conflist") {
			parse = json.Unmarshal
		}
		if err := parse(data, &content); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, data)
		}
		all[name] = content
	}
	return all
}

// hack/start-k3s.sh, the documented sequence, gives k3s what the plan for such a sandbox
// gives it: the script is run, with programs in the place of k3s and ip that say what they
// are asked for.
func TestStartScript(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "native"} {
		t.Run(snapshotter, func(t *testing.T) { startScript(t, snapshotter) })
	}
}

func startScript(t *testing.T, snapshotter string) {
	script, err := filepath.Abs(filepath.Join("..", "..", "hack", "start-k3s.sh"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	said := filepath.Join(dir, "said")
	for _, name := range []string{"k3s", "ip", "ln"} {
		program := "#!/bin/sh\nfor arg in " + name + " \"$@\"; do printf '%s\\n' \"$arg\" >>" + said + "; done\necho >>" + said + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", script, "--node-name=mine", "--kubelet-arg=max-pods=20")
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "K3S_DATA_DIR=" + data, "SNAPSHOTTER=" + snapshotter}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	calls := strings.Split(strings.TrimSpace(string(text)), "\n\n")
	last := strings.Split(calls[len(calls)-1], "\n")

	s := sandbox()
	s.Containerd.Snapshotter = snapshotter
	want, err := s.K3s(K3sNode{Data: data, Address: "10.42.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	// What the user adds comes last, where it wins.
	if diff := cmp.Diff(slices.Concat([]string{"k3s"}, want.Args, []string{"--node-name=mine", "--kubelet-arg=max-pods=20"}), last); diff != "" {
		t.Errorf("the script starts another k3s (-plan +script):\n%s", diff)
	}
	written := make(map[string][]byte)
	for name := range want.Files {
		if written[name], err = os.ReadFile(name); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(parsed(t, want.Files), parsed(t, written)); diff != "" {
		t.Errorf("the script writes other files (-plan +script):\n%s", diff)
	}
	for _, call := range []string{"ip\nlink\nadd\ncni0\nmtu\n65535\ntype\nbridge", "ip\naddr\nadd\n10.42.0.1/24\ndev\ncni0", "ip\nlink\nset\ncni0\nup"} {
		if !slices.Contains(calls, call) {
			t.Errorf("the script does not call %q", strings.ReplaceAll(call, "\n", " "))
		}
	}
}

// Each choice reaches k3s, and a machine without any blocker gives it nothing to do
// differently.
func TestEachChoiceOfK3s(t *testing.T) {
	plain := Default()
	const dropIn = "/data/agent/etc/containerd/config-v3.toml.d/k3s9p.toml"
	start := func(change func(*Settings), node K3sNode) K3s {
		s := plain
		change(&s)
		node.Data = "/data"
		k, err := s.K3s(node)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	none := func(*Settings) {}
	k := start(none, K3sNode{})
	if diff := cmp.Diff([]string{"server", "--data-dir=/data", "--pause-image=k3s9p.local/pause:1"}, k.Args); diff != "" || len(k.Files) > 0 {
		t.Errorf("without blockers k3s gets (-want +got):\n%s and files %v", diff, k.Files)
	}
	for name, c := range map[string]struct {
		change func(*Settings)
		args   []string
		file   string // has to be in the drop-in
	}{
		"cgroup v1":       {func(s *Settings) { s.Kubelet.AllowCgroupV1 = true }, []string{"--kubelet-arg=fail-cgroupv1=false"}, ""},
		"a shared disk":   {func(s *Settings) { s.Kubelet.ForeignDisk = true }, []string{"--kubelet-arg=image-gc-high-threshold=100"}, ""},
		"a cgroup":        {func(s *Settings) { s.Kubelet.Cgroup = "/pods" }, []string{"--kubelet-arg=cgroup-root=/pods"}, ""},
		"a resolv.conf":   {func(s *Settings) { s.Kubelet.Resolver = "/etc/own" }, []string{"--resolv-conf=/etc/own"}, ""},
		"the kubelet":     {func(s *Settings) { s.Kubelet.RootDir = "/kubelet" }, []string{"--kubelet-arg=root-dir=/kubelet"}, ""},
		"native":          {func(s *Settings) { s.Containerd.Snapshotter = "native" }, []string{"--snapshotter=native"}, "disabled_plugins = ['io.containerd.snapshotter.v1.overlayfs', 'io.containerd.snapshotter.v1.erofs']"},
		"who unpacks":     {func(s *Settings) { s.Containerd.Snapshotter = "native" }, nil, "snapshotter = 'native'"},
		"ports":           {func(s *Settings) { s.Containerd.UnprivilegedPorts = false }, nil, "enable_unprivileged_ports = false"},
		"pings":           {func(s *Settings) { s.Containerd.UnprivilegedPorts = false }, nil, "enable_unprivileged_icmp = false"},
		"OOM scores":      {func(s *Settings) { s.Containerd.RestrictOOMScore = true }, nil, "restrict_oom_score_adj = true"},
		"user namespace":  {func(s *Settings) { s.UserNamespace = true }, []string{"--kubelet-arg=feature-gates=KubeletInUserNamespace=true"}, "disable_apparmor = true"},
		"no Services":     {func(s *Settings) { s.Network.Services = "" }, []string{"--disable-kube-proxy", "--disable-network-policy"}, ""},
		"Services":        {func(s *Settings) { s.Network.Services = ServiceProxy }, []string{"--disable-kube-proxy", "--disable-network-policy", "--disable=traefik,servicelb"}, ""},
		"the pause image": {func(s *Settings) { s.Containerd.PauseImage = "example.com/pause:2" }, []string{"--pause-image=example.com/pause:2"}, ""},
	} {
		k := start(c.change, K3sNode{})
		for _, arg := range c.args {
			if !slices.Contains(k.Args, arg) {
				t.Errorf("%s: %q is not in %q", name, arg, k.Args)
			}
		}
		if drop := string(k.Files[dropIn]); !strings.Contains(drop, c.file) || (drop == "") != (c.file == "") {
			t.Errorf("%s: %q is not in %q", name, c.file, drop)
		}
	}
	for name, c := range map[string]struct {
		node K3sNode
		args []string
		file string
	}{
		"the bridge":  {K3sNode{Address: "10.42.0.1"}, []string{"--flannel-backend=none", "--node-ip=10.42.0.1", "--advertise-address=10.42.0.1"}, "bin_dirs = ['/data/data/cni']"},
		"its network": {K3sNode{Address: "10.42.0.1"}, nil, "conf_dir = '/data/agent/etc/cni/net.d'"},
		"kubeconfig":  {K3sNode{Kubeconfig: "/admin.conf"}, []string{"--write-kubeconfig=/admin.conf"}, ""},
		"cgroups":     {K3sNode{Confined: true}, []string{"--kubelet-arg=kubelet-cgroups=", "--kubelet-arg=runtime-cgroups=", "--kubelet-arg=volume-plugin-dir=/var/lib/kubelet/volume-plugins", "--kube-controller-manager-arg=flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins"}, "disable = true"},
		"policies":    {K3sNode{Confined: true, Disable: []string{"coredns"}}, []string{"--disable-network-policy", "--disable=traefik,servicelb,coredns"}, "disable = true"},
		"kube-proxy":  {K3sNode{KubeProxy: []string{"proxy-mode=nftables"}}, []string{"--kube-proxy-arg=proxy-mode=nftables"}, ""},
		"namespaces":  {K3sNode{Confined: true}, nil, "netns_mounts_under_state_dir = true"},
	} {
		k := start(none, c.node)
		for _, arg := range c.args {
			if !slices.Contains(k.Args, arg) {
				t.Errorf("%s: %q is not in %q", name, arg, k.Args)
			}
		}
		if slices.Contains(k.Args, "--disable-kube-proxy") {
			t.Errorf("%s: the kernel would serve Services, and kube-proxy is off", name)
		}
		if drop := string(k.Files[dropIn]); !strings.Contains(drop, c.file) || (drop == "") != (c.file == "") {
			t.Errorf("%s: %q is not in %q", name, c.file, drop)
		}
		if _, ok := k.Files["/data/agent/etc/cni/net.d/10-k3s9p.conflist"]; ok != (c.node.Address != "") {
			t.Errorf("%s: the files are %v", name, slices.Sorted(maps.Keys(k.Files)))
		}
	}
	k, err := plain.K3s(K3sNode{Name: "n", ClusterCIDR: "10.1.0.0/16", ServiceCIDR: "10.2.0.0/16", Disable: []string{"coredns", "metrics-server"}})
	if diff := cmp.Diff([]string{"server", "--node-name=n", "--cluster-cidr=10.1.0.0/16", "--service-cidr=10.2.0.0/16", "--disable=coredns,metrics-server", "--pause-image=k3s9p.local/pause:1"}, k.Args); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
}
