package node

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
)

// distribution is what bringing a node up does for one distribution and not for the
// others. What is the same for all is not in here: it asks this.
type distribution struct {
	steps func(*Node) []step
	// configure writes the configuration of the programs, as planned.
	configure func(*Node) error
	// endPods leaves a container runtime running, and nobody who would start pods again.
	endPods func(*Node)
	// server are the programs that the control plane is made of.
	server []string

	// unpacked is how many times as large as in the bundle the programs are on the disk.
	unpacked int64
	// bin and plugins are the directories of the programs and of the CNI plugins, of a
	// bundle that was unpacked.
	bin, plugins func(p Paths, bundle string) string
	// bound are further directories that programs have built in; see Paths.bound.
	bound func(Paths) map[string]string
	// covered are directories in which programs make files, and read those of the user.
	covered []string
	// settings changes those of a machine without any blocker.
	settings func(*config.Settings, Paths)
	// listening are the ports of every node, listeningServers those of a control plane.
	listening, listeningServers []listener
	// fits returns an error about a node that this distribution cannot be.
	fits func(Options, Cluster, Rung) error
	// admission is how other machines become nodes of its clusters.
	admission admission
	// refusesKubeProxy is why kube-proxy does not serve Services in a mode, or empty.
	refusesKubeProxy func(mode string) string
	// startKubeProxy starts it on a node that serves Services by it; nil where another
	// program has it in it.
	startKubeProxy func(*Node) error
}

// k3sName is how the record of a build and cluster.json call it.
const k3sName = "k3s"

// distributionOf returns one by its name; kubernetes has it only since there are others.
func distributionOf(name string) distribution {
	if name == k3sName {
		return k3sDistribution()
	}
	return kubernetesDistribution()
}

func (c Cluster) distribution() distribution { return distributionOf(c.Distribution) }

func (n *Node) distribution() distribution { return n.cluster.distribution() }

// kubernetesDistribution is Kubernetes as the programs that upstream has.
func kubernetesDistribution() distribution {
	return distribution{
		steps:     (*Node).kubernetesSteps,
		configure: (*Node).writeFiles,
		endPods:   func(n *Node) { n.supervisor.Stop(kubelet) },
		server:    []string{kine, controlPlane},
		unpacked:  1,
		bin:       func(_ Paths, bundle string) string { return filepath.Join(bundle, "bin") },
		plugins:   func(_ Paths, bundle string) string { return filepath.Join(bundle, "cni") },
		bound:     func(Paths) map[string]string { return nil },
		settings:  func(*config.Settings, Paths) {},
		fits:      noK3sArgs,
		admission: kubeadmAdmission(),

		refusesKubeProxy: func(string) string { return "" },
		startKubeProxy:   (*Node).startKubeProxy,
		listening:        []listener{{kubelet, "tcp", ":10250"}, {kubelet, "tcp", "127.0.0.1:10248"}},
		listeningServers: []listener{
			{"kube-apiserver", "tcp", fmt.Sprintf(":%d", port)}, {"metrics-server", "tcp", fmt.Sprintf("127.0.0.1:%d", metricsPort)},
		},
	}
}

// kubernetesSteps bring up a node of the distribution kubernetes.
func (n *Node) kubernetesSteps() []step {
	var runtime errgroup.Group
	return []step{
		{title: "unpack the programs", do: n.unpack},
		{title: "join the cluster", do: n.join(n.enroll, n.servingCertificate), of: joined},
		{title: "check and fix the machine", do: n.fix},
		{title: "make the pod network", do: n.podNetwork},
		{title: "add routes to the other nodes", do: plain(n.syncNodes, n.publishServer), of: joined},
		{title: "start the container runtime", do: func(ctx context.Context) (string, error) {
			err := n.containerRuntime(ctx)
			if err == nil {
				runtime.Go(func() error {
					if err := n.runtimeReady(ctx); err != nil {
						return err
					}
					return n.images(ctx)
				})
			}
			return "", err
		}},
		{title: "start the datastore, make certificates", do: plain(n.datastore, n.certificates, n.address), of: servers},
		{title: "start the control plane", do: plain(n.controlPlane, n.publishServer, n.again(n.roles), n.addOns, n.again(n.register)), of: servers},
		{title: "wait for the container runtime", do: func(context.Context) (string, error) { return "", runtime.Wait() }},
		{title: "start the kubelet, DNS and Services", do: plain(n.kubelet, n.dns, n.openServices)},
		{title: "wait until the node is Ready", do: plain(n.ready)},
	}
}

// podNetwork makes the bridge and lets pods out, as planned.
func (n *Node) podNetwork(ctx context.Context) (string, error) {
	_, err := plain(n.bridge, n.openEgress)(ctx)
	return n.plan.Value(blocker.Egress), err
}

// writeFiles writes the configuration of containerd, of the kubelet and of the pod network.
func (n *Node) writeFiles() (err error) {
	n.files, err = n.plan.Settings.Write(n.paths.etc())
	return err
}
