package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
	"k3s9p/internal/node"
	"k3s9p/internal/record"
)

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show upstream versions, patches with digests, and sources with sums",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd)
	check := cmd.Flags().Bool("check", false, "compare with what is in the data directory, and what runs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := output()
		if err != nil {
			return err
		}
		show := printVersion
		if *check {
			show = func(w io.Writer, b *bundle.Bundle, asJSON bool) error {
				return printComparison(w, b, dataDir(cmd), asJSON)
			}
		}
		return withBundle(func(b *bundle.Bundle) error { return show(cmd.OutOrStdout(), b, asJSON) })
	}
	return cmd
}

// comparison is what version --check tells.
type comparison struct {
	This    node.Versions  `json:"this"`
	Disk    *node.Versions `json:"disk,omitempty"` // of the program that last brought up the cluster
	Running bool           `json:"running"`
}

func printComparison(w io.Writer, b *bundle.Bundle, dataDir string, asJSON bool) error {
	build, err := b.Build()
	if err != nil {
		return err
	}
	state, err := node.Status(dataDir)
	if err != nil {
		return err
	}
	c := comparison{This: node.VersionsOf(build), Running: state.PID != 0}
	if state.Cluster != nil {
		c.Disk = &state.Cluster.Versions
	}
	if asJSON {
		return printJSON(w, c)
	}
	fmt.Fprintf(w, "this file  %s\n", c.This)
	switch {
	case c.Disk == nil:
		fmt.Fprintf(w, "on disk    no cluster in %s\n", dataDir)
	case c.Running:
		fmt.Fprintf(w, "running    %s, in %s\n", c.Disk, dataDir)
	default:
		fmt.Fprintf(w, "on disk    %s, in %s; it does not run\n", c.Disk, dataDir)
	}
	if c.Running && *c.Disk != c.This {
		fmt.Fprintln(w, "next: k3s9p down, then k3s9p up, continues the cluster with this file")
	}
	return nil
}

func printVersion(w io.Writer, b *bundle.Bundle, asJSON bool) error {
	build, err := b.Build()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(w, build)
	}
	describe(w, build)
	return nil
}

// describe says what a build was made of, and what of that is not what is pinned.
func describe(w io.Writer, build record.Build) {
	if build.Release != "" {
		fmt.Fprintf(w, "k3s9p %s\n", build.Release)
	}
	fmt.Fprintf(w, "%s %s (%s, %s)\n", build.Distribution, build.Version, build.Toolchain.Go, build.Toolchain.Platform)
	for _, set := range build.Sets {
		fmt.Fprintf(w, "  %-12s %s\n", set.Name, set.Version)
		for _, p := range set.Patches {
			fmt.Fprintf(w, "    %.12s  %s: %s\n", p.Digest, p.Module, p.Description)
		}
		for _, module := range set.Unverified {
			fmt.Fprintf(w, "    not the pinned source: %s\n", module)
		}
		for _, line := range set.Replaced {
			fmt.Fprintf(w, "    not the pinned module: %s\n", line)
		}
	}
	for _, what := range build.Lacks {
		fmt.Fprintf(w, "  lacks %s\n", what)
	}
}

func unpackCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "unpack DIR",
		Short:   "Verify the distribution and write its files to a new directory",
		Example: "  k3s9p unpack /opt/k3s9p",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			where := "the programs are in %[1]s/bin, the CNI plugins in %[1]s/cni\n"
			err := withBundle(func(b *bundle.Bundle) error {
				build, err := b.Build()
				if err != nil {
					return err
				}
				if build.Distribution == "k3s" {
					where = "the program is %[1]s/k3s\n"
				}
				return b.Unpack(args[0])
			})
			if errors.Is(err, os.ErrExist) {
				return hint.Add(err, "name a directory that does not exist yet")
			}
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), where, args[0])
			}
			return err
		},
	}
}
