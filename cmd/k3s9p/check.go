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
with what was seen; and what up would choose and change because of it. Nothing is
changed. The exit status is 1 if something is found that has no fix and that a node
cannot run with.`,
		Example: "  k3s9p check -o json",
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		rung, plan, refused := node.Check(cmd.Context(), dataDir(cmd))
		if refused != nil && len(plan.Findings) == 0 {
			return refused
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), plan)
		} else {
			err = printCheck(cmd.OutOrStdout(), rung, plan)
		}
		if err != nil {
			return err
		}
		var stuck []string
		for _, finding := range plan.Stuck() {
			stuck = append(stuck, finding.ID)
		}
		if len(stuck) > 0 {
			return fmt.Errorf("found, and there is no fix for it: %s", strings.Join(stuck, ", "))
		}
		return refused
	}
	return cmd
}

func printCheck(w io.Writer, rung node.Rung, plan blocker.Plan) error {
	fmt.Fprintf(w, "a node runs here %s\n\n", rung)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "BLOCKER\tANSWER\tWHAT UP DOES")
	for _, f := range plan.Findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Title, f.Answer, f.Action)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nwhat was seen:")
	for _, f := range plan.Findings {
		fmt.Fprintf(w, "  %s: %s\n", f.ID, f.Evidence)
	}
	fmt.Fprintln(w)
	printPlan(w, plan)
	return nil
}

// printPlan prints what is decided, each with its reason.
func printPlan(w io.Writer, plan blocker.Plan) {
	fmt.Fprintln(w, "choices:")
	for _, c := range plan.Choices {
		fmt.Fprintf(w, "  %s: %s\n    (%s)\n", c.Subject, c.Value, c.Reason)
	}
	for _, part := range []struct {
		title   string
		passing bool
	}{{"changes of the machine, until down:", false}, {"mounts in the node's own mount namespace:", true}} {
		fmt.Fprintln(w, part.title)
		for _, c := range plan.Changes {
			if c.Passing == part.passing {
				fmt.Fprintf(w, "  %s\n    (%s)\n", c.What, c.Reason)
			}
		}
	}
}

// dry says what up would do.
func dry(cmd *cobra.Command, o node.Options) error {
	plan, err := node.DryRun(cmd.Context(), o)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	c, command := plan.Cluster, cmd.Name()
	fmt.Fprintf(w, "%s would bring up node %s with %s, and its data in %s\n", command, c.NodeName, plan.Version, o.DataDir)
	if c.Joined() {
		fmt.Fprintf(w, "it would be one of the cluster of %s\n", c.Server)
	}
	pods := c.PodCIDR().String()
	if !c.PodCIDR().IsValid() {
		pods = fmt.Sprintf("a part of %s that the server gives", c.ClusterCIDR)
	}
	fmt.Fprintf(w, "pods in %s, Services in %s\n", pods, c.ServiceCIDR)
	fmt.Fprintf(w, "it would run %s\n", plan.Rung)
	for _, f := range plan.Warnings() {
		fmt.Fprintf(w, "warning: %s: %s\n  (%s)\n", f.Title, f.Action, f.Evidence)
	}
	printPlan(w, plan.Plan)
	fmt.Fprintf(w, "nothing was changed; next: k3s9p %s\n", command)
	return nil
}
