package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"k3s9p/internal/hint"
	"k3s9p/internal/node"
	"k3s9p/internal/progress"
)

func upCommand() *cobra.Command {
	var o node.Options
	cmd := &cobra.Command{
		Use:   "up [-- ARGUMENT OF k3s server…]",
		Short: "Bring up the cluster: fix what this machine lacks, start, wait for Ready",
		Long: `Bring up a cluster of one node on this machine, and keep it running until Ctrl-C.

What the machine lacks is found out by trying it, and fixed where it can be; all of
it is taken back at the end. With --detach the command returns when the node is
Ready, and k3s9p down ends it.`,
		Example: `  k3s9p up                       # until Ctrl-C
  k3s9p up --detach              # in the background
  k3s9p up --images ./images     # import image archives, now and when they appear
  k3s9p up --disable metrics     # without metrics-server
  k3s9p up --publish 80:30080    # port 80 of this machine leads to node port 30080
  k3s9p up --kubelet-arg max-pods=20
  k3s9p up -- --node-label=zone=a    # where this file carries k3s: further flags of it`,
		Args: afterDash,
	}
	dryRun := nodeFlags(cmd, &o)
	cmd.Flags().StringVar(&o.ClusterCIDR, "cluster-cidr", "", "the network of pods (default: 10.42.0.0/16, or another one that is free)")
	cmd.Flags().StringVar(&o.ServiceCIDR, "service-cidr", "", "the network of Services (default: 10.43.0.0/16, or another one that is free)")
	cmd.Flags().StringSliceVar(&o.Disable, "disable", nil, "leave out a part of the cluster: "+strings.Join(node.AddOns, ", "))
	cmd.Flags().StringArrayVar(&o.APIServerArgs, "kube-apiserver-arg", nil, "a further flag of kube-apiserver, as name=value; may be repeated")
	cmd.Flags().StringArrayVar(&o.ControllerManagerArgs, "kube-controller-manager-arg", nil, "the same for kube-controller-manager")
	cmd.Flags().StringArrayVar(&o.SchedulerArgs, "kube-scheduler-arg", nil, "the same for kube-scheduler")
	cmd.Flags().StringVar(&o.Rootless, "rootless", node.RootlessAuto, "in namespaces of its own, which need no privileges: always, never, or auto, where privileges are missing")
	cmd.Flags().Lookup("rootless").NoOptDefVal = node.RootlessAlways
	cmd.Flags().StringVar(&o.Network, "network", "", "none: the cluster reaches nothing outside (default: what this machine reaches)")
	cmd.Flags().StringVar(&o.Services, "services", "", "proxy: serve Services in userspace also where the kernel can (default: what this machine can)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.DataDir, o.K3sArgs = dataDir(cmd), args
		return bringUp(cmd, o, *dryRun)
	}
	return cmd
}

// afterDash allows arguments behind -- only.
func afterDash(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); dash > 0 || dash < 0 && len(args) > 0 {
		return hint.Add(fmt.Errorf("unknown argument %q for %q", args[0], cmd.CommandPath()), "what is for k3s comes after --")
	}
	return nil
}

// nodeFlags adds those of every node, and returns whether to do nothing.
func nodeFlags(cmd *cobra.Command, o *node.Options) (dryRun *bool) {
	dryRun = cmd.Flags().Bool("dry-run", false, "say what would be done, and change nothing")
	cmd.Flags().BoolVar(&o.Detach, "detach", false, "return when the node is Ready, and leave it running")
	cmd.Flags().DurationVar(&o.Wait, "wait", node.DefaultWait, "how long the node may take to be Ready")
	cmd.Flags().StringVar(&o.Images, "images", "", "a directory with image archives to import")
	cmd.Flags().StringVar(&o.NodeName, "node-name", "", "the name of the node (default: the host name)")
	cmd.Flags().StringVar(&o.AdvertiseAddress, "advertise-address", "", "the address of this machine that other nodes reach it at (default: the one that leads to the server, or that of the default route)")
	cmd.Flags().StringArrayVar(&o.KubeletArgs, "kubelet-arg", nil, "a further flag of the kubelet, as name=value; may be repeated")
	cmd.Flags().StringArrayVar(&o.Publish, "publish", nil, "a further port of this machine for a node port or a hostPort, as [ADDRESS:]PORT:NODEPORT[/udp]; may be repeated")
	_ = cmd.MarkFlagDirname("images")
	return dryRun
}

func bringUp(cmd *cobra.Command, o node.Options, dryRun bool) error {
	if dryRun {
		return explain(dry(cmd, o))
	}
	return explain(node.Up(o, func() {
		w := cmd.OutOrStdout()
		if state, err := node.Status(o.DataDir); err == nil && state.Cluster != nil && state.Cluster.Joined() {
			fmt.Fprintf(w, "node %s is Ready; next, on the server: k3s9p kubectl get nodes\n", state.Cluster.NodeName)
		} else {
			fmt.Fprintln(w, "the cluster is ready; next: k3s9p kubectl get nodes")
		}
		if o.Detach {
			fmt.Fprintln(w, "it runs in the background until k3s9p down")
			return
		}
		fmt.Fprintln(w, "it runs until Ctrl-C")
	}))
}

func downCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster, and take back every change of the machine",
		Example: `  k3s9p down             # the next up continues where it was
  k3s9p down --purge     # the data goes as well`,
		Args: cobra.NoArgs,
	}
	purge := cmd.Flags().Bool("purge", false, "also remove the data directory: volumes, images, the cluster itself")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o := node.Options{DataDir: dataDir(cmd)}
		worked, err := node.Down(o, *purge, progress.New(false))
		if err != nil {
			return err
		}
		switch {
		case !worked:
			fmt.Fprintln(cmd.OutOrStdout(), "nothing runs, and there is nothing to take back")
		case *purge:
			fmt.Fprintf(cmd.OutOrStdout(), "the cluster is stopped, and nothing of it is left\n")
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "the cluster is stopped; its data stays in %s; next: k3s9p up, or k3s9p down --purge\n", o.DataDir)
		}
		return nil
	}
	return cmd
}
