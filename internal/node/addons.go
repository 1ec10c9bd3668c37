package node

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k3s9p/internal/blocker"
	"k3s9p/internal/hint"
)

// The parts of a cluster that can be left out, as --disable calls them.
const (
	dnsAddOn      = "dns"
	servicesAddOn = "services"
	storageAddOn  = "storage"
	metricsAddOn  = "metrics"
)

// nodesAddOn is what nodes that join need, which is nobody's choice.
const nodesAddOn = "nodes"

// AddOns are all of them.
var AddOns = []string{dnsAddOn, servicesAddOn, storageAddOn, metricsAddOn}

// has reports whether an add-on is part of the cluster.
func (o Options) has(addOn string) bool { return !slices.Contains(o.Disable, addOn) }

func (o Options) checkAddOns() error {
	for _, name := range o.Disable {
		if !slices.Contains(AddOns, name) {
			return hint.Add(fmt.Errorf("--disable %s: there is no such add-on", name), "the add-ons are %s", strings.Join(AddOns, ", "))
		}
	}
	return nil
}

// addOnManifests are the objects of the add-ons that have any.
//
//go:embed addons/*.yaml
var addOnManifests embed.FS

// addOnPrefix keeps their files apart from the user's.
const addOnPrefix = "k3s9p-"

// writeAddOns puts the manifests of the add-ons into the directory of manifests, and
// removes those of what is disabled. It returns the names of the files.
func (n *Node) writeAddOns() (names []string, err error) {
	settings, err := json.Marshal(clusterSettings{n.cluster.ClusterCIDR, n.cluster.ServiceCIDR, n.options.Disable, n.byKubeProxy() && n.distribution().startKubeProxy == nil})
	if err != nil {
		return nil, err
	}
	values := strings.NewReplacer("DNS_ADDRESS", n.cluster.DNS().String(), "DNS_ENDPOINT", n.dnsEndpoint().String(), "METRICS_PORT", strconv.Itoa(metricsPort),
		"TOKEN_GROUP", n.distribution().admission.group, "SETTINGS", string(settings))
	entries, err := addOnManifests.ReadDir("addons")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		file := filepath.Join(n.paths.Manifests(), addOnPrefix+entry.Name())
		if !n.options.has(strings.TrimSuffix(entry.Name(), ".yaml")) {
			if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
			continue
		}
		text, err := addOnManifests.ReadFile("addons/" + entry.Name())
		if err == nil {
			err = writeFile(file, []byte(values.Replace(string(text))), 0o644)
		}
		if err != nil {
			return nil, err
		}
		names = append(names, filepath.Base(file))
	}
	return names, nil
}

// forOthers is the manifest of what other nodes need.
const forOthers = addOnPrefix + nodesAddOn + ".yaml"

// addOns makes the objects of the add-ons; those of the user's manifests, and what other
// nodes need, come later.
func (n *Node) addOns(ctx context.Context) error {
	names, err := n.writeAddOns()
	if err != nil {
		return fmt.Errorf("write the manifests of the add-ons: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == forOthers })
	if err := n.openManifests(); err != nil {
		return err
	}
	return n.supervisor.Await(ctx, func(ctx context.Context) error { return n.manifests.Apply(ctx, names...) }, n.distribution().server...)
}

// AddOn is how a part of the cluster is done, or that it is not.
type AddOn struct {
	Name string `json:"name"`
	How  string `json:"how"`
}

// describeAddOns says how the add-ons are done, and why, where there is a choice.
func (n *Node) describeAddOns() []AddOn {
	how := map[string]string{
		dnsAddOn:      "CoreDNS at " + n.cluster.DNS().String(),
		servicesAddOn: n.plan.Explain(blocker.Services),
		metricsAddOn:  topSilent,
		storageAddOn:  "StorageClass local-path, directories in " + n.paths.storage(),
	}
	if n.cluster.Joined() {
		how[metricsAddOn] = "by the server"
	}
	var all []AddOn
	for _, name := range AddOns {
		if !n.options.has(name) {
			how[name] = cmp.Or(n.lacking[name], "disabled")
		}
		all = append(all, AddOn{name, how[name]})
	}
	return all
}
