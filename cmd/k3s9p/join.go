package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"k3s9p/internal/node"
)

func joinCommand() *cobra.Command {
	var o node.Options
	cmd := &cobra.Command{
		Use:   "join [-- ARGUMENT OF k3s agent…]",
		Short: "Make this machine a node of a cluster on another one, and wait for Ready",
		Long: `Make this machine a node of the cluster that k3s9p up has brought up on another one, and
keep it running until Ctrl-C. k3s9p token create prints the command to type, on the
server. Both machines have to be on one network. Once a node has joined, k3s9p down and
k3s9p up stop and continue it, without the token.`,
		Example: `  k3s9p join --server https://192.0.2.2:6443 --token K10… --detach
  K3S9P_TOKEN=K10… k3s9p join --server https://192.0.2.2:6443 --node-name second`,
		Args: afterDash,
	}
	server := cmd.Flags().String("server", "", "the URL of the cluster's apiserver")
	token := cmd.Flags().String("token", "", "the token that k3s9p token create has printed on the server")
	dryRun := nodeFlags(cmd, &o)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.DataDir, o.K3sArgs = dataDir(cmd), args
		o, err := node.Discover(cmd.Context(), o, *server, *token)
		if err != nil {
			return explain(err)
		}
		return bringUp(cmd, o, *dryRun)
	}
	return cmd
}

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make, list and delete the tokens that other machines join with",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(tokenCreateCommand(), tokenListCommand(), tokenDeleteCommand())
	return cmd
}

func tokenCreateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make a token, and print the command that joins with it",
		Example: "  k3s9p token create --ttl 1h",
		Args:    cobra.NoArgs,
	}
	ttl := cmd.Flags().Duration("ttl", node.DefaultTokenTTL, "how long it can be joined with; 0 for ever")
	description := cmd.Flags().String("description", "", "what it is for")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		token, err := node.CreateToken(cmd.Context(), dataDir(cmd), *ttl, *description)
		if err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		if asJSON {
			return printJSON(w, token)
		}
		fmt.Fprintf(w, "on the machine that is to join; %s:\n", validity(token))
		fmt.Fprintf(w, "k3s9p join --detach --server %s --token %s\n", token.Server, token.Token)
		return nil
	}
	return cmd
}

func tokenListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tokens of the cluster, without their secrets",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		tokens, err := node.Tokens(cmd.Context(), dataDir(cmd))
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), tokens)
		}
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "TOKEN\tVALIDITY\tDESCRIPTION")
		for _, t := range tokens {
			fmt.Fprintf(table, "%s\t%s\t%s\n", t.ID, validity(t), t.Description)
		}
		return table.Flush()
	}
	return cmd
}

func tokenDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "delete TOKEN…",
		Short:   "Delete tokens, named by their first six characters; nodes that have joined stay",
		Example: "  k3s9p token delete abcdef",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := node.DeleteToken(cmd.Context(), dataDir(cmd), name); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "deleted %s\n", strings.TrimSpace(name))
			}
			return nil
		},
	}
}

// validity says how long a token can still be used.
func validity(t node.Token) string {
	if t.Expires.IsZero() {
		return "it does not expire"
	}
	return "valid until " + t.Expires.UTC().Format("2006-01-02 15:04:05 MST")
}
