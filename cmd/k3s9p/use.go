package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"k3s9p/internal/hint"
	"k3s9p/internal/node"
)

func kubectlCommand() *cobra.Command {
	return passthrough("kubectl", "Run kubectl against the cluster", "  k3s9p kubectl get pods -A", func(p node.Paths) ([]string, []string) {
		return nil, []string{"KUBECONFIG=" + p.Kubeconfig(), "KUBECACHEDIR=" + p.KubectlCache()}
	})
}

func ctrCommand() *cobra.Command {
	cmd := passthrough("ctr", "Run ctr, the client of containerd, in the namespace of Kubernetes", "  k3s9p ctr images list\n  k3s9p ctr run --rm -t docker.io/library/busybox:latest shell sh", func(p node.Paths) ([]string, []string) {
		return []string{"--address=" + p.RuntimeAddress(), "--namespace=k8s.io"}, nil
	})
	outside := cmd.RunE // it says what is wrong where no node runs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		signals := make(chan os.Signal, 16)
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGWINCH)
		status, err := node.RunCtr(node.Paths{Data: dataDir(cmd)}, args, signals)
		signal.Stop(signals)
		switch {
		case errors.Is(err, node.ErrNotRunning):
			return outside(cmd, args)
		case err == nil && status != 0:
			os.Exit(status)
		}
		return err
	}
	return cmd
}

// passthrough runs a program of the distribution in place of this one.
func passthrough(name, short, example string, with func(node.Paths) (args, env []string)) *cobra.Command {
	return &cobra.Command{
		Use:                name + " ARGUMENTS…",
		Short:              short,
		Example:            example,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			p := node.Paths{Data: dataDir(cmd)}
			program, err := p.Program(name)
			if err != nil {
				return err
			}
			_, err = os.Open(p.Kubeconfig())
			switch {
			case errors.Is(err, os.ErrPermission):
				return hint.Add(err, "the cluster belongs to root: sudo k3s9p %s …", name)
			case name == "kubectl" && errors.Is(err, os.ErrNotExist):
				return noKubeconfig(p.Data)
			}
			more, env := with(p)
			argv := append(append([]string{name}, more...), args...)
			// Environ keeps the last of two variables of one name; a program written in Go takes
			// the first.
			all := (&exec.Cmd{Env: append(os.Environ(), env...)}).Environ()
			return fmt.Errorf("run %s: %w", program, unix.Exec(program, argv, all))
		},
	}
}

func kubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print a kubeconfig for other clients on this machine",
		Example: "  k3s9p kubeconfig > ~/.kube/config",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := os.ReadFile(node.Paths{Data: dataDir(cmd)}.Kubeconfig())
			if errors.Is(err, os.ErrNotExist) {
				return noKubeconfig(dataDir(cmd))
			}
			if err == nil {
				_, err = cmd.OutOrStdout().Write(data)
			}
			return err
		},
	}
}

// noKubeconfig is the error about a data directory without one.
func noKubeconfig(dir string) error {
	if state, err := node.Status(dir); err == nil && state.Cluster != nil && state.Cluster.Joined() {
		return hint.Add(fmt.Errorf("this node has joined the cluster of %s, and has no administrator's kubeconfig", state.Cluster.Server), "use k3s9p kubectl and k3s9p kubeconfig on that server")
	}
	return hint.Add(fmt.Errorf("there is no cluster in %s", dir), "k3s9p up makes one")
}

func logsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs [PROGRAM]",
		Short: "Show the log of a program of the node, or name them",
		Example: `  k3s9p logs                     # which there are
  k3s9p logs kubelet --follow`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return logNames(cmd), cobra.ShellCompDirectiveNoFileComp
		},
	}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on as lines are written")
	lines := cmd.Flags().Int("tail", 100, "how many lines from the end, 0 for none, -1 for all")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir := node.Paths{Data: dataDir(cmd)}.Logs()
		names := logNames(cmd)
		if len(names) == 0 {
			return hint.Add(fmt.Errorf("there are no logs in %s", dir), "k3s9p up starts a node")
		}
		if len(args) == 0 {
			for _, name := range names {
				fmt.Fprintf(cmd.OutOrStdout(), "%-26s %s\n", name, filepath.Join(dir, name+".log"))
			}
			return nil
		}
		file := filepath.Join(dir, args[0]+".log")
		if _, err := os.Stat(file); err != nil {
			return hint.Add(fmt.Errorf("there is no log of %q", args[0]), "k3s9p logs names them")
		}
		return showLog(cmd.Context(), cmd.OutOrStdout(), file, *lines, *follow)
	}
	return cmd
}
