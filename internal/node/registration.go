package node

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// registration is what the kubelet is told to register its node with. It does not where
// there is a Node already (pkg/kubelet, tryRegisterWithAPIServer), as here: its part of the
// cluster CIDR has to be known first.
type registration struct {
	labels map[string]string
	taints []corev1.Taint
}

// registration reads the flags, and the configuration of k3s, for both. What is no label
// and no taint is left to who is told it.
func (n *Node) registration() (r registration, err error) {
	labels, taints := valuesOf(n.options.KubeletArgs, "node-labels"), valuesOf(n.options.KubeletArgs, "register-with-taints")
	if n.cluster.Distribution == k3sName {
		configured, err := k3sConfiguration(cmp.Or(os.Getenv("K3S_CONFIG_FILE"), filepath.Join(k3sSettings, "config.yaml")), "node-label", "node-taint")
		if err != nil {
			return r, err
		}
		labels = slices.Concat(configured["node-label"], valuesOf(n.options.K3sArgs, "node-label"), labels)
		taints = slices.Concat(configured["node-taint"], valuesOf(n.options.K3sArgs, "node-taint"), taints)
	}
	r.labels = make(map[string]string)
	for label := range strings.SplitSeq(strings.Join(labels, ","), ",") {
		if name, value, ok := strings.Cut(label, "="); ok {
			r.labels[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	for taint := range strings.SplitSeq(strings.Join(taints, ","), ",") {
		if key, effect, ok := strings.Cut(taint, ":"); ok {
			key, value, _ := strings.Cut(key, "=")
			last := corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)}
			r.taints = append(slices.DeleteFunc(r.taints, func(t corev1.Taint) bool { return t.MatchTaint(&last) }), last)
		}
	}
	return r, nil
}

// valuesOf are those of a flag among arguments: name=value, with or without dashes, or
// --name value.
func valuesOf(args []string, flag string) (values []string) {
	for i, arg := range args {
		name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case name != flag:
		case given:
			values = append(values, value)
		case strings.HasPrefix(arg, "-") && i+1 < len(args):
			values = append(values, args[i+1])
		}
	}
	return values
}

// k3sConfiguration are the values of some flags in a configuration file of k3s and what is
// beside it: a later file replaces those of an earlier one, or adds to them with NAME+
// (https://docs.k3s.io/installation/configuration).
func k3sConfiguration(file string, flags ...string) (map[string][]string, error) {
	more, err := filepath.Glob(file + ".d/*.y*ml")
	if err != nil {
		return nil, err
	}
	values := make(map[string][]string)
	for _, name := range append([]string{file}, more...) {
		data, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue
		}
		var content map[string]any
		if err == nil {
			err = yaml.Unmarshal(data, &content)
		}
		if err != nil {
			return nil, fmt.Errorf("read the configuration of k3s, %s: %w", name, err)
		}
		for _, flag := range flags {
			if value, ok := content[flag]; ok {
				values[flag] = list(value)
			}
			values[flag] = append(values[flag], list(content[flag+"+"])...)
		}
	}
	return values, nil
}

// list is a value of YAML as several, which it may be.
func list(value any) (texts []string) {
	switch value := value.(type) {
	case nil:
	case []any:
		for _, one := range value {
			texts = append(texts, fmt.Sprint(one))
		}
	default:
		texts = append(texts, fmt.Sprint(value))
	}
	return texts
}
