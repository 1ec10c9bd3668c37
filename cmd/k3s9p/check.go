package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"k3s9p/internal/blocker"
	"k3s9p/internal/node"
)

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what keeps a node from running here, and what up does about it",
		Long: `Try what a node needs of this machine, and say for each blocker whether it is found,
with what was seen, and what up does about it. Nothing is changed. The exit status is
1 if something is found that has no fix and that a node cannot run with.`,
		Example: "  k3s9p check -o json",
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		rung, findings, err := node.Check(cmd.Context(), dataDir(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			if err := printJSON(cmd.OutOrStdout(), findings); err != nil {
				return err
			}
		} else if err := printFindings(cmd.OutOrStdout(), rung, findings); err != nil {
			return err
		}
		var stuck []string
		for _, finding := range findings {
			if finding.Answer == blocker.Found && finding.Remedy == blocker.None {
				stuck = append(stuck, finding.ID)
			}
		}
		if len(stuck) > 0 {
			return fmt.Errorf("found, and there is no fix for it: %s", strings.Join(stuck, ", "))
		}
		return nil
	}
	return cmd
}

func printFindings(w io.Writer, rung node.Rung, findings []blocker.Finding) error {
	fmt.Fprintf(w, "a node runs here %s\n\n", rung)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "BLOCKER\tANSWER\tWHAT UP DOES")
	for _, f := range findings {
		action := ""
		if f.Answer == blocker.Found {
			action = f.Action
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Title, f.Answer, action)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nwhat was seen:")
	for _, f := range findings {
		fmt.Fprintf(w, "  %s: %s\n", f.ID, f.Evidence)
	}
	return nil
}

// dry says what up would do.
func dry(cmd *cobra.Command, o node.Options) error {
	plan, err := node.DryRun(cmd.Context(), o)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "up would bring up node %s with %s, and its data in %s\n", plan.Cluster.NodeName, plan.Version, o.DataDir)
	fmt.Fprintf(w, "pods in %s, Services in %s, the bridge %s with %s\n", plan.Cluster.PodCIDR(), plan.Cluster.ServiceCIDR, node.Bridge, plan.Cluster.Address())
	fmt.Fprintf(w, "it would run %s\n", plan.Rung)
	for _, dir := range plan.Directories {
		fmt.Fprintf(w, "make directory %s\n", dir)
	}
	for _, f := range plan.Findings {
		if f.Answer == blocker.Found {
			fmt.Fprintf(w, "%s: %s\n", f.Title, f.Action)
		}
	}
	fmt.Fprintln(w, "nothing was changed; next: k3s9p up")
	return nil
}
