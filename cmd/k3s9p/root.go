package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
)

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "k3s9p",
		Short:         "Kubernetes node programs for sandboxes, in one file",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(versionCommand(), unpackCommand())
	return cmd
}

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show upstream versions, patches with digests, and sources with sums",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("unknown output format %q: it is text or json", output)
			}
			return withBundle(func(b *bundle.Bundle) error { return printVersion(cmd.OutOrStdout(), b, output) })
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func printVersion(w io.Writer, b *bundle.Bundle, output string) error {
	build, err := b.Build()
	if err != nil {
		return err
	}
	if output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(build)
	}
	fmt.Fprintf(w, "%s %s (%s, %s)\n", build.Distribution, build.Version, build.Toolchain.Go, build.Toolchain.Platform)
	for _, set := range build.Sets {
		fmt.Fprintf(w, "  %-12s %s\n", set.Name, set.Version)
		for _, p := range set.Patches {
			fmt.Fprintf(w, "    %.12s  %s: %s\n", p.Digest, p.Module, p.Description)
		}
	}
	return nil
}

func unpackCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unpack DIR",
		Short: "Verify the distribution and write its files to a new folder",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := withBundle(func(b *bundle.Bundle) error { return b.Unpack(args[0]) })
			if errors.Is(err, os.ErrExist) {
				return hint.Add(err, "name a folder that does not exist yet")
			}
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "the programs are in %s/bin, the CNI plugins in %s/cni\n", args[0], args[0])
			}
			return err
		},
	}
}

func withBundle(use func(*bundle.Bundle) error) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := bundle.Open(self)
	if errors.Is(err, bundle.ErrNoBundle) {
		return hint.Add(err, "go tool mage build makes dist/k3s9p, which does")
	}
	if err == nil {
		defer b.Close()
		err = use(b)
	}
	if errors.Is(err, bundle.ErrDamaged) {
		return hint.Add(err, "copy the file again: it is not what was built")
	}
	return err
}
