package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"k3s9p/internal/node"
	"k3s9p/internal/progress"
)

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show what runs, since when, and how much memory it uses",
		Example: "  k3s9p status -o json",
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		state, err := node.Status(dataDir(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), state)
		}
		return printStatus(cmd.OutOrStdout(), state)
	}
	return cmd
}

func printStatus(w io.Writer, s node.State) error {
	switch s.Phase {
	case node.Stopped:
		if s.Cluster == nil {
			fmt.Fprintln(w, "there is no cluster; next: k3s9p up")
			return nil
		}
		fmt.Fprintf(w, "stopped; the data is in %s; next: k3s9p up\n", s.DataDir)
		return nil
	case node.Killed:
		fmt.Fprintln(w, "the node was killed; next: k3s9p up continues, k3s9p down cleans up")
	default:
		fmt.Fprintf(w, "%s for %s\n", s.Phase, progress.Elapsed(time.Since(s.Since)))
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := [][2]string{
		{"node", s.Cluster.NodeName}, {"address", s.Address}, {"Kubernetes", s.Version}, {"apiserver", s.Server},
		{"pods", s.Cluster.PodCIDR().String()}, {"Services", s.Cluster.ServiceCIDR.String()},
		{"privileges", privileges(s)}, {"data", s.DataDir},
	}
	for _, addOn := range s.AddOns {
		rows = append(rows, [2]string{addOn.Name, addOn.How})
	}
	for _, row := range rows {
		if row[1] != "" {
			fmt.Fprintf(table, "%s\t%s\n", row[0], row[1])
		}
	}
	if s.Plan != nil {
		for _, c := range s.Plan.Choices {
			fmt.Fprintf(table, "%s\t%s\n", c.Subject, c.Value)
		}
		for _, c := range s.Plan.Changes {
			fmt.Fprintf(table, "done\t%s\n", c.What)
		}
	}
	fmt.Fprintln(table)
	fmt.Fprintln(table, "PROGRAM\tPROCESS\tSINCE\tRESTARTS\tMEMORY\tLAST EXIT")
	total := s.RSS
	if s.PID > 0 {
		fmt.Fprintf(table, "k3s9p\t%d\t%s\t\t%s\t\n", s.PID, progress.Elapsed(time.Since(s.Since)), progress.Size(s.RSS))
	}
	for _, p := range s.Programs {
		process, since := "–", ""
		if p.PID > 0 {
			process, since = fmt.Sprint(p.PID), progress.Elapsed(time.Since(p.Since))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\n", p.Name, process, since, p.Restarts, progress.Size(p.RSS), p.LastExit)
		total += p.RSS
	}
	fmt.Fprintf(table, "all\t\t\t\t%s\t\n", progress.Size(total))
	if len(s.Manifests) > 0 {
		fmt.Fprintln(table, "\nMANIFEST\tOBJECTS\tERROR")
	}
	for _, file := range s.Manifests {
		fmt.Fprintf(table, "%s\t%d\t%s\n", file.Name, file.Objects, strings.ReplaceAll(file.Error, "\n", "; "))
	}
	return table.Flush()
}

func privileges(s node.State) string {
	if s.Rootless {
		return "none: in namespaces of its own"
	}
	return ""
}
