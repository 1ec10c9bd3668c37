#!/bin/sh
# Starts a patched k3s in a gVisor sandbox whose root is 9p, without k3s9p: the sequence
# of docs/k3s.md. As root, with the capabilities of a node, a cgroup mount, and the
# programs ip and ln:
#
#	hack/start-k3s.sh [FLAG OF k3s server]...
#
# Flags that follow are passed on, and win. SNAPSHOTTER=native is for a gVisor of before May
# 2026, where overlayfs does not work on 9p: k3s9p check finds that out. A test compares what this gives k3s with what
# k3s9p renders from its plan for such a sandbox.
set -eu
data=${K3S_DATA_DIR:-/var/lib/rancher/k3s}
address=10.42.0.1

# The kubelet reads the kernel's messages and does not start without the file.
[ -e /dev/kmsg ] || ln -s /dev/null /dev/kmsg

# gVisor does not bring packets of pods to the address of eth0. The bridge comes first, so
# that its address can be the node's. The MTU is the largest: gVisor drops segments that it
# has put together itself where they are larger than the MTU (gvisor#14011).
ip link add cni0 mtu 65535 type bridge
ip addr add "$address/24" dev cni0
ip link set cni0 up

# The pod network, in the place of flannel: gVisor has no vxlan. ipMasq is off because
# gVisor has no MASQUERADE; k3s9p up brings a proxy for what pods ask outside.
mkdir -p "$data/agent/etc/cni/net.d" "$data/agent/etc/containerd/config-v3.toml.d"
cat >"$data/agent/etc/cni/net.d/10-k3s9p.conflist" <<END
{"cniVersion": "1.0.0", "name": "k3s9p", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "mtu": 65535,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
END

# Where overlayfs does not work, its plugin and that of erofs must not be tried, or nothing of
# containerd starts, and who pulls an image has to unpack it for native.
without='' unpack=''
if [ "${SNAPSHOTTER:-overlayfs}" = native ]; then
	case $(uname -m) in aarch64) arch=arm64 ;; *) arch=amd64 ;; esac
	without='disabled_plugins = ["io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.erofs"]'
	unpack="[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/$arch'
snapshotter = 'native'
differ = 'walking'"
	set -- --snapshotter=native "$@"
fi

# containerd would set two sysctls in each pod that gVisor does not have. Without flannel
# k3s does not tell it where the plugins and their configuration are.
cat >"$data/agent/etc/containerd/config-v3.toml.d/k3s9p.toml" <<END
version = 3
$without

[plugins.'io.containerd.cri.v1.runtime']
enable_unprivileged_ports = false
enable_unprivileged_icmp = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["$data/data/cni"]
conf_dir = "$data/agent/etc/cni/net.d"

$unpack
END

# --node-ip, --advertise-address   the address of the bridge, as above
# --flannel-backend                none: the configuration above
# --disable-kube-proxy, --disable-network-policy
#                                  gVisor's netfilter has none of the extensions that both
#                                  need; k3s9p up brings a proxy for Services
# --disable                        traefik and servicelb need kube-proxy
# --pause-image                    the name in full: containerd does not find k3s's own
# --kubelet-arg                    gVisor has cgroup v1, which Kubernetes 1.35 and later
#                                  refuse by default; the disk is that of the host, so that
#                                  percentages of it say nothing about this node
exec k3s server --data-dir="$data" \
	--node-ip="$address" --advertise-address="$address" \
	--flannel-backend=none --disable-kube-proxy --disable-network-policy \
	--disable=traefik,servicelb \
	--pause-image=docker.io/rancher/mirrored-pause:3.10.2 \
	--kubelet-arg=fail-cgroupv1=false \
	--kubelet-arg='eviction-hard=imagefs.available<500Mi,imagefs.inodesFree<1%,memory.available<100Mi,nodefs.available<500Mi,nodefs.inodesFree<1%' \
	--kubelet-arg=image-gc-high-threshold=100 --kubelet-arg=image-gc-low-threshold=99 \
	"$@"
