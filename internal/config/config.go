// Package config makes the configuration files of a node's programs from a few
// choices: what the kubelet, containerd and the CNI plugins are told.
//
// It decides nothing: package blocker plans which choices this machine needs, and
// what stays is upstream's default.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/atomicwriter"
	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"
)

// Settings are the choices.
type Settings struct {
	Kubelet    Kubelet    `json:"kubelet"`
	Containerd Containerd `json:"containerd"`
	Network    Network    `json:"network"`
	// UserNamespace says that all programs run in a user namespace: they forgive what
	// is refused in one.
	UserNamespace bool `json:"userNamespace,omitempty"`
}

// Kubelet are the choices for the kubelet.
type Kubelet struct {
	// AllowCgroupV1 lets the kubelet start on cgroup v1, which Kubernetes ≥ 1.35
	// refuses by default.
	AllowCgroupV1 bool `json:"allowCgroupV1"`
	// ForeignDisk says that the disk is shared with others, so that a share of its
	// size says nothing about this node: see [foreignDiskEviction].
	ForeignDisk bool   `json:"foreignDisk"`
	RootDir     string `json:"rootDir"`
	// Cgroup is the parent of the cgroups of all pods; empty is the root.
	Cgroup string `json:"cgroup,omitempty"`
	// ClientCA is the file of the authority of those who may ask the kubelet.
	ClientCA string `json:"clientCA,omitempty"`
	// DNS is the address of the cluster's DNS server, and Resolver the resolv.conf
	// that pods with dnsPolicy Default get; empty for none.
	DNS      string `json:"dns,omitempty"`
	Resolver string `json:"resolver,omitempty"`
}

// Containerd are the choices for containerd.
type Containerd struct {
	Root  string `json:"root"`
	State string `json:"state"`
	// Tmpfs is the size, in bytes, of the tmpfs that images and containers are kept
	// in, where overlayfs works on one and not on the filesystem of Root; 0 is none.
	Tmpfs int64 `json:"tmpfs,omitempty"`
	// Snapshotter is overlayfs or native.
	Snapshotter string `json:"snapshotter"`
	// UnprivilegedPorts lets pods bind ports below 1024 and send pings without a
	// capability: two sysctls of a pod's network namespace.
	UnprivilegedPorts bool   `json:"unprivilegedPorts"`
	PauseImage        string `json:"pauseImage"`
	// RestrictOOMScore keeps the OOM score of pods from falling below containerd's
	// own.
	RestrictOOMScore bool `json:"restrictOOMScore,omitempty"`
	// Plugins is the directory of the CNI plugins, and Networks that of their
	// configuration.
	Plugins  string `json:"plugins"`
	Networks string `json:"networks"`
}

// Network are the choices for the pod network.
type Network struct {
	// Plugin is bridge or ptp.
	Plugin  string `json:"plugin"`
	PodCIDR string `json:"podCIDR"`
	// MTU of the bridge and of pods, in bytes; 0 is the kernel's default.
	MTU int `json:"mtu,omitempty"`
	// State is the directory that addresses in use are recorded in; empty is the
	// plugin's default.
	State  string `json:"state,omitempty"`
	Egress Egress `json:"egress"`
	// Bridged names what takes the rule that nothing is forwarded from the bridge to itself
	// (nat.Backend); empty where the kernel needs none.
	Bridged string `json:"bridged,omitempty"`
	// Services is what serves them: ServiceProxy, or a mode of kube-proxy (nftables,
	// iptables).
	Services string `json:"services"`
}

// ServiceProxy serves Services in userspace, by the node itself.
const ServiceProxy = "proxy"

// Egress is how pods reach what is outside of the cluster. The node sees to it, and
// the CNI plugin does not (ipMasq).
type Egress struct {
	Way Way `json:"way"`
	// Backend names what takes the rules (nat.Backend); empty for NoEgress.
	Backend string `json:"backend,omitempty"`
	// RawUDP says that UDP goes by the proxy too, which gets it by a raw socket.
	RawUDP bool `json:"rawUDP,omitempty"`
}

// Way is a way out for pods.
type Way string

const (
	Masquerade Way = "masquerade" // the kernel gives what leaves the address of the node
	Proxy      Way = "proxy"      // TCP by a proxy in userspace, UDP by SNAT or RawUDP
	NoEgress   Way = "none"
)

// Default is what a node on a machine without any blocker gets.
func Default() Settings {
	return Settings{
		Kubelet: Kubelet{RootDir: "/var/lib/kubelet"},
		Containerd: Containerd{
			Root: "/var/lib/containerd", State: "/run/containerd",
			Snapshotter: "overlayfs", UnprivilegedPorts: true,
			PauseImage: "k3s9p.local/pause:1",
			Plugins:    "/opt/cni/bin", Networks: "/etc/cni/net.d",
		},
		Network: Network{Plugin: "bridge", PodCIDR: "10.42.0.0/24", Egress: Egress{Way: Masquerade, Backend: "nftables"}, Services: "nftables"},
	}
}

// Socket is where containerd listens.
func (c Containerd) Socket() string { return filepath.Join(c.State, "containerd.sock") }

// foreignDiskEviction are thresholds for a disk that is shared with others: an
// absolute rest, because 10 % of somebody else's disk are not this node's to free.
// Image garbage collection, which deletes images until enough of the disk is free,
// would delete all of them and be no further; at 100 % it is off.
var foreignDiskEviction = map[string]string{
	"memory.available":   "100Mi",
	"nodefs.available":   "500Mi",
	"nodefs.inodesFree":  "1%",
	"imagefs.available":  "500Mi",
	"imagefs.inodesFree": "1%",
}

// KubeletConfig is the kubelet's configuration (kubelet.config.k8s.io/v1beta1). Its
// Go types would bring Prometheus and OpenTelemetry into this program; the kubelet
// refuses a field that it does not know.
func (s Settings) KubeletConfig() ([]byte, error) {
	type object = map[string]any
	c := object{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"cgroupDriver":             "cgroupfs",
		"containerRuntimeEndpoint": "unix://" + s.Containerd.Socket(),
		"failSwapOn":               false,
		// Its chains protect from what only kube-proxy's mode iptables opens, and would stay.
		"makeIPTablesUtilChains": false,
		"resolvConf":             s.Kubelet.Resolver,
	}
	if s.UserNamespace {
		c["featureGates"] = object{"KubeletInUserNamespace": true}
	}
	if s.Kubelet.Cgroup != "" {
		c["cgroupRoot"] = s.Kubelet.Cgroup
	}
	if s.Kubelet.ClientCA != "" {
		c["authentication"] = object{"x509": object{"clientCAFile": s.Kubelet.ClientCA}, "webhook": object{"enabled": true}, "anonymous": object{"enabled": false}}
		c["authorization"] = object{"mode": "Webhook"}
		c["volumePluginDir"] = filepath.Join(s.Kubelet.RootDir, "volume-plugins")
	}
	if s.Kubelet.DNS != "" {
		c["clusterDNS"], c["clusterDomain"] = []string{s.Kubelet.DNS}, "cluster.local"
	}
	if s.Kubelet.AllowCgroupV1 {
		c["failCgroupV1"] = false
	}
	if s.Kubelet.ForeignDisk {
		c["evictionHard"] = foreignDiskEviction
		c["imageGCHighThresholdPercent"], c["imageGCLowThresholdPercent"] = 100, 99
	}
	return yaml.Marshal(c)
}

// otherSnapshotters cannot start where native is needed, and the metadata plugin, and
// so everything, waits for them: without d_type they end with an error.
var otherSnapshotters = []string{"io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.erofs"}

// ContainerdConfig is containerd's configuration (version 4).
func (s Settings) ContainerdConfig() ([]byte, error) {
	type table = map[string]any
	c := s.Containerd
	content := table{
		"version": 4,
		"root":    c.Root,
		"state":   c.State,
	}
	plugins := table{
		"io.containerd.server.v1.grpc":  table{"address": c.Socket()},
		"io.containerd.server.v1.ttrpc": table{"address": c.Socket() + ".ttrpc"},
		"io.containerd.internal.v1.opt": table{"path": filepath.Join(c.Root, "opt")},
		"io.containerd.cri.v1.images": table{
			"snapshotter":   c.Snapshotter,
			"pinned_images": table{"sandbox": c.PauseImage},
		},
		"io.containerd.nri.v1.nri": noNRI(),
		"io.containerd.cri.v1.runtime": table{
			"netns_mounts_under_state_dir": true,
			"restrict_oom_score_adj":       c.RestrictOOMScore || s.UserNamespace,
			"disable_apparmor":             s.UserNamespace,
			"enable_unprivileged_ports":    c.UnprivilegedPorts,
			"enable_unprivileged_icmp":     c.UnprivilegedPorts,
			"cni":                          table{"bin_dirs": []string{c.Plugins}, "conf_dir": c.Networks},
		},
	}
	if c.Snapshotter == "native" {
		content["disabled_plugins"] = otherSnapshotters
		plugins["io.containerd.transfer.v1.local"] = unpackNative()
	}
	content["plugins"] = plugins
	return toml.Marshal(content)
}

// noNRI turns off a plugin whose socket would be outside of the node's directories.
func noNRI() map[string]any { return map[string]any{"disable": true} }

// Conflist is the configuration of the pod network (CNI specification 1.0.0).
func (s Settings) Conflist() ([]byte, error) {
	type object = map[string]any
	plugin := object{"type": s.Network.Plugin, "ipMasq": false}
	ipam := object{
		"type":   "host-local",
		"ranges": [][]object{{{"subnet": s.Network.PodCIDR}}},
		"routes": []object{{"dst": "0.0.0.0/0"}},
	}
	if s.Network.State != "" {
		ipam["dataDir"] = s.Network.State
	}
	plugin["ipam"] = ipam
	if s.Network.MTU > 0 {
		plugin["mtu"] = s.Network.MTU
	}
	switch s.Network.Plugin {
	case "bridge":
		plugin["bridge"], plugin["isGateway"] = "cni0", true
		// With br_netfilter the bridge itself follows the rules of a Service, and sends a
		// pod that is its own endpoint back what it came with.
		if s.Network.Services != ServiceProxy {
			plugin["hairpinMode"] = true
		}
	case "ptp":
	default:
		return nil, fmt.Errorf("the pod network is bridge or ptp, not %q", s.Network.Plugin)
	}
	return json.MarshalIndent(object{"cniVersion": "1.0.0", "name": "k3s9p", "plugins": []object{plugin}}, "", "  ")
}

// networkFile is the name of the configuration of the pod network.
const networkFile = "10-k3s9p.conflist"

// Files are the configuration files of a node, by their place.
type Files struct {
	Kubelet, Containerd, Network string
}

// Write puts the files of a node into a directory, and the configuration of the pod
// network where containerd looks for it.
func (s Settings) Write(dir string) (Files, error) {
	files := Files{
		Kubelet:    filepath.Join(dir, "kubelet.yaml"),
		Containerd: filepath.Join(dir, "containerd.toml"),
		Network:    filepath.Join(s.Containerd.Networks, networkFile),
	}
	var failures error
	for name, content := range map[string]func() ([]byte, error){files.Kubelet: s.KubeletConfig, files.Containerd: s.ContainerdConfig, files.Network: s.Conflist} {
		data, err := content()
		if err == nil {
			err = writeFile(name, data)
		}
		failures = errors.Join(failures, err)
	}
	return files, failures
}

// writeFile replaces a file: containerd does not see one that is rewritten in place.
func writeFile(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return atomicwriter.WriteFile(name, data, 0o600)
}
