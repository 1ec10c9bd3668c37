package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
	"k3s9p/internal/node"
)

// The groups of the help.
const (
	clusterGroup = "cluster"
	useGroup     = "use"
	fileGroup    = "file"
)

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "k3s9p",
		Short: "A Kubernetes cluster, in sandboxes too, in one file",
		Example: `  k3s9p up --detach              # a cluster, ready to use
  k3s9p kubectl get nodes
  k3s9p down --purge             # and nothing is left of it`,
		SilenceUsage:     true,
		SilenceErrors:    true,
		TraverseChildren: true, // --data-dir also before kubectl and ctr, which parse their own flags
	}
	cmd.PersistentFlags().String(dataDirFlag, defaultData(), "where the node keeps everything that is its own")
	cmd.PersistentFlags().String(configFlag, "", "a YAML file with values for the flags; K3S9P_… in the environment go before it")
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return applyConfig(cmd) }
	cmd.AddGroup(
		&cobra.Group{ID: clusterGroup, Title: "The cluster:"},
		&cobra.Group{ID: useGroup, Title: "Using it:"},
		&cobra.Group{ID: fileGroup, Title: "This file:"})
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{clusterGroup, []*cobra.Command{checkCommand(), upCommand(), joinCommand(), tokenCommand(), statusCommand(), logsCommand(), downCommand()}},
		{useGroup, []*cobra.Command{kubectlCommand(), ctrCommand(), kubeconfigCommand()}},
		{fileGroup, []*cobra.Command{versionCommand(), unpackCommand()}},
	} {
		for _, c := range group.commands {
			c.GroupID = group.id
			cmd.AddCommand(c)
		}
	}
	cmd.SetHelpCommandGroupID(fileGroup)
	cmd.SetCompletionCommandGroupID(fileGroup)
	return cmd
}

// defaultData is where a node has its data: of a user that is not root below their home
// (XDG Base Directory Specification), unless there is one of root's only.
func defaultData() string {
	if os.Geteuid() == 0 {
		return node.DefaultData
	}
	share := os.Getenv("XDG_DATA_HOME")
	if home, err := os.UserHomeDir(); !filepath.IsAbs(share) && err == nil {
		share = filepath.Join(home, ".local", "share")
	}
	own := filepath.Join(share, "k3s9p")
	for _, dir := range []string{own, node.DefaultData} {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return own
}

// outputFlag adds -o and returns what checks it.
func outputFlag(cmd *cobra.Command) func() (asJSON bool, err error) {
	output := cmd.Flags().StringP("output", "o", "text", "text or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return func() (bool, error) {
		if *output != "text" && *output != "json" {
			return false, hint.Add(fmt.Errorf("unknown output format %q", *output), "-o text or -o json")
		}
		return *output == "json", nil
	}
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

func withBundle(use func(*bundle.Bundle) error) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := bundle.Open(self)
	if err == nil {
		defer b.Close()
		err = use(b)
	}
	return explain(err)
}

// explain adds what to do about an error of the bundle in this file.
func explain(err error) error {
	switch {
	case errors.Is(err, bundle.ErrNoBundle):
		return hint.Add(err, "go tool mage build makes dist/k3s9p, which does")
	case errors.Is(err, bundle.ErrDamaged):
		return hint.Add(err, "copy the file again: it is not what was built")
	}
	return err
}
