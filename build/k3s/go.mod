module k3s9p/build/k3s

go 1.26.2

// The versions of all but k3s are those that k3s names, in its go.mod and in
// scripts/version.sh: the build compares them.
require (
	github.com/containerd/containerd/v2 v2.3.2
	github.com/containernetworking/plugins v1.9.1
	github.com/flannel-io/cni-plugin v1.9.0-flannel1
	github.com/k3s-io/k3s v1.36.3-0.20260720191027-4ca29faac89e
	github.com/opencontainers/runc v1.4.2
)

replace (
	github.com/containerd/containerd/v2 => github.com/k3s-io/containerd/v2 v2.3.2-k3s2
	github.com/containernetworking/plugins => github.com/rancher/plugins v1.9.1-k3s1
)
