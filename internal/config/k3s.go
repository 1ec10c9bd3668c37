package config

import (
	"cmp"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// K3sNode is what k3s is told besides the choices. Empty values leave it to k3s.
type K3sNode struct {
	// Server is the URL of the server of an agent, and TokenFile has its token; without one
	// it is a server itself.
	Server, TokenFile string
	Data              string // its data directory
	Name              string // of the node
	// Address is that of the bridge, which is there: the pod network is the bridge's, and
	// the address the node's. Without one the pod network is k3s's.
	Address                  string
	ClusterCIDR, ServiceCIDR string
	Disable                  []string // k3s's names of add-ons
	Kubeconfig               string   // the file for that of the administrator
	// KubeProxy are flags of kube-proxy, where that serves Services.
	KubeProxy []string
	// Confined says that containerd makes nothing outside of its directories, and the
	// kubelet no cgroup but those of pods: what is not made need not be taken back.
	Confined bool
}

// K3s are the arguments and files by which k3s gets choices. The files are by
// their paths; they are written before k3s starts, which keeps them.
type K3s struct {
	Args  []string
	Files map[string][]byte
}

// K3s renders the choices for k3s. On a machine without any blocker it says nothing
// that k3s does not do by itself.
func (s Settings) K3s(node K3sNode) (K3s, error) {
	agent := node.Server != ""
	args := []string{"server"}
	if agent {
		args[0] = "agent"
	}
	flag := func(name, value string) {
		if value != "" {
			args = append(args, "--"+name+"="+value)
		}
	}
	flag("server", node.Server)
	flag("token-file", node.TokenFile)
	flag("data-dir", node.Data)
	flag("node-name", node.Name)
	flag("cluster-cidr", node.ClusterCIDR)
	flag("service-cidr", node.ServiceCIDR)
	flag("write-kubeconfig", node.Kubeconfig)
	disable := node.Disable
	if node.Address != "" {
		// gVisor does not bring a pod's packets to the address of eth0: the node's is the bridge's.
		flag("node-ip", node.Address)
	}
	if node.Address != "" && !agent { // an agent asks its server for the rest
		flag("advertise-address", node.Address)
		args = append(args, "--flannel-backend=none")
	}
	// An agent has kube-proxy if its server has.
	nobody := s.Network.Services == ServiceProxy || s.Network.Services == ""
	if nobody && !agent {
		args = append(args, "--disable-kube-proxy")
	}
	if (nobody || node.Confined) && !agent {
		// The policies and the load balancer are made of rules of iptables, which stay.
		args = append(args, "--disable-network-policy")
		disable = append([]string{"traefik", "servicelb"}, disable...)
	}
	for _, arg := range node.KubeProxy {
		flag("kube-proxy-arg", arg)
	}
	flag("disable", strings.Join(disable, ","))
	flag("pause-image", s.Containerd.PauseImage)
	flag("resolv-conf", s.Kubelet.Resolver)
	for _, arg := range s.k3sKubelet() {
		flag("kubelet-arg", arg)
	}
	if node.Confined {
		flag("kubelet-arg", "kubelet-cgroups=")
		flag("kubelet-arg", "runtime-cgroups=")
		plugins := filepath.Join(s.Kubelet.RootDir, "volume-plugins")
		flag("kubelet-arg", "volume-plugin-dir="+plugins)
		if !agent {
			flag("kube-controller-manager-arg", "flex-volume-plugin-dir="+plugins)
		}
	}
	if s.Containerd.Snapshotter != Default().Containerd.Snapshotter {
		flag("snapshotter", s.Containerd.Snapshotter)
	}
	files, err := s.k3sFiles(node)
	return K3s{Args: args, Files: files}, err
}

// k3sKubelet are the kubelet's choices as flags of it: what KubeletConfig has as fields.
func (s Settings) k3sKubelet() []string {
	var args []string
	if s.UserNamespace {
		args = append(args, "feature-gates=KubeletInUserNamespace=true")
	}
	if s.Kubelet.RootDir != Default().Kubelet.RootDir {
		args = append(args, "root-dir="+s.Kubelet.RootDir)
	}
	if s.Kubelet.Cgroup != "" {
		args = append(args, "cgroup-root="+s.Kubelet.Cgroup)
	}
	if s.Kubelet.AllowCgroupV1 {
		args = append(args, "fail-cgroupv1=false")
	}
	if s.Kubelet.ForeignDisk {
		var thresholds []string
		for _, signal := range slices.Sorted(maps.Keys(foreignDiskEviction)) {
			thresholds = append(thresholds, signal+"<"+foreignDiskEviction[signal])
		}
		args = append(args, "eviction-hard="+strings.Join(thresholds, ","), "image-gc-high-threshold=100", "image-gc-low-threshold=99")
	}
	return args
}

// k3sFiles are what containerd is told by a drop-in, which k3s's own configuration
// imports, and the configuration of the pod network.
func (s Settings) k3sFiles(node K3sNode) (map[string][]byte, error) {
	type table = map[string]any
	data := cmp.Or(node.Data, "/var/lib/rancher/k3s")
	files := make(map[string][]byte)
	content, runtimeTable := table{}, table{}
	if !s.Containerd.UnprivilegedPorts {
		runtimeTable["enable_unprivileged_ports"], runtimeTable["enable_unprivileged_icmp"] = false, false
	}
	if s.Containerd.RestrictOOMScore || s.UserNamespace {
		runtimeTable["restrict_oom_score_adj"] = true
	}
	if s.UserNamespace {
		runtimeTable["disable_apparmor"] = true
	}
	plugins := table{}
	if node.Confined {
		runtimeTable["netns_mounts_under_state_dir"] = true
		plugins["io.containerd.nri.v1.nri"] = noNRI()
	}
	if s.Containerd.Snapshotter == "native" {
		content["disabled_plugins"] = otherSnapshotters
		plugins["io.containerd.transfer.v1.local"] = unpackNative()
	}
	if node.Address != "" {
		networks := filepath.Join(data, "agent", "etc", "cni", "net.d")
		// Without flannel k3s leaves both to containerd, which looks into /opt and /etc.
		runtimeTable["cni"] = table{"bin_dirs": []string{filepath.Join(data, "data", "cni")}, "conf_dir": networks}
		conflist, err := s.Conflist()
		if err != nil {
			return nil, err
		}
		files[filepath.Join(networks, networkFile)] = conflist
	}
	if len(runtimeTable) > 0 {
		plugins["io.containerd.cri.v1.runtime"] = runtimeTable
	}
	if len(plugins) == 0 {
		return files, nil
	}
	content["version"], content["plugins"] = 3, plugins
	drop, err := toml.Marshal(content)
	files[filepath.Join(data, "agent", "etc", "containerd", "config-v3.toml.d", "k3s9p.toml")] = drop
	return files, err
}

// unpackNative makes who pulls an image unpack it for the snapshotter native, not for
// overlayfs (containerd plugins/transfer).
func unpackNative() map[string]any {
	return map[string]any{"unpack_config": []map[string]any{{"platform": "linux/" + runtime.GOARCH, "snapshotter": "native", "differ": "walking"}}}
}
