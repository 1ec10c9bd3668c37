package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/hint"
)

const (
	dataDirFlag = "data-dir"
	configFlag  = "config"
)

// variable is the name of a flag in the environment.
func variable(flag string) string {
	return "K3S9P_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// applyConfig gives the flags that were not typed their values from the environment
// or, after that, from the file that --config names.
func applyConfig(cmd *cobra.Command) error {
	if err := applyEnvironment(cmd); err != nil {
		return err
	}
	file, err := cmd.Flags().GetString(configFlag)
	if err != nil || file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return hint.Add(fmt.Errorf("read the configuration: %w", err), "--config names a YAML file with the names of flags as keys")
	}
	values := make(map[string]any)
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("read the configuration %s: %s", file, strings.Join(strings.Fields(err.Error()), " "))
	}
	known := configurable(cmd.Root())
	for key, value := range values {
		if !slices.Contains(known, key) {
			return hint.Add(fmt.Errorf("the configuration %s has an unknown key %q", file, key), "the keys are %s", strings.Join(known, ", "))
		}
		flag := cmd.Flags().Lookup(key)
		if flag == nil || flag.Changed || value == nil { // another command's, typed, or a key without a value
			continue
		}
		all, err := texts(value)
		if err != nil {
			return fmt.Errorf("the configuration %s: %s: %w", file, key, err)
		}
		for _, text := range all {
			if err := cmd.Flags().Set(key, text); err != nil {
				return fmt.Errorf("the configuration %s: %s: %w", file, key, err)
			}
		}
	}
	return nil
}

func applyEnvironment(cmd *cobra.Command) error {
	var failures error
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		value, ok := os.LookupEnv(variable(flag.Name))
		if !ok || flag.Changed || flag.Name == "help" {
			return
		}
		values := []string{value}
		if flag.Value.Type() == "stringArray" {
			values = strings.Fields(value)
		}
		for _, value := range values {
			if err := cmd.Flags().Set(flag.Name, value); err != nil {
				failures = errors.Join(failures, fmt.Errorf("%s=%s: %w", variable(flag.Name), value, err))
			}
		}
	})
	return failures
}

// configurable are the names of all flags that the file may have.
func configurable(root *cobra.Command) []string {
	var names []string
	collect := func(flag *pflag.Flag) {
		if !slices.Contains([]string{"help", configFlag, "output"}, flag.Name) {
			names = append(names, flag.Name)
		}
	}
	root.PersistentFlags().VisitAll(collect)
	for _, name := range []string{"up", "join"} {
		if cmd, _, err := root.Find([]string{name}); err == nil {
			cmd.LocalFlags().VisitAll(collect)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// texts are what the value of a key would be on the command line.
func texts(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var all []string
	for _, item := range list {
		switch item := item.(type) {
		case string, bool:
			all = append(all, fmt.Sprint(item))
		case float64: // as all numbers are
			all = append(all, strconv.FormatFloat(item, 'f', -1, 64))
		default:
			return nil, errors.New("this is neither a text, a number, true or false, nor a list of such")
		}
	}
	return all, nil
}

// dataDir is the node's data directory, as an absolute path.
func dataDir(cmd *cobra.Command) string {
	dir, err := cmd.Flags().GetString(dataDirFlag)
	if err != nil { // a command that parses no flags
		dir, _ = cmd.Root().PersistentFlags().GetString(dataDirFlag)
	}
	absolute, err := filepath.Abs(cmp.Or(dir, defaultData()))
	if err != nil {
		return dir
	}
	return resolved(absolute)
}

// resolved follows the symbolic links in the part of a path that exists: what is told of
// a node by the kernel, such as where its programs are, is without them.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil || path == filepath.Dir(path) {
		return cmp.Or(real, path)
	}
	return filepath.Join(resolved(filepath.Dir(path)), filepath.Base(path))
}
