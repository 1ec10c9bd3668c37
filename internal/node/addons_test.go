package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k3s9p/internal/manifest"
)

// The manifests of the add-ons are there at each start, those of what is disabled are
// not, and the user's own are left alone.
func TestAddOnManifests(t *testing.T) {
	n := &Node{paths: Paths{t.TempDir()},
		cluster: Cluster{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}}
	n.plan.Settings.Network.Services = "nftables"
	if err := writeFile(filepath.Join(n.paths.Manifests(), "dns.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	others := []string{"Role kube-system/k3s9p:join", "RoleBinding kube-system/k3s9p:join", "ClusterRole k3s9p:join", "ClusterRoleBinding k3s9p:join", "ClusterRole k3s9p:node", "ClusterRoleBinding k3s9p:node", "ValidatingAdmissionPolicy k3s9p-node", "ValidatingAdmissionPolicyBinding k3s9p-node", "ConfigMap kube-system/k3s9p"}
	for _, step := range []struct{ disable, objects []string }{
		{nil, []string{"ClusterRole k3s9p:coredns", "ClusterRoleBinding k3s9p:coredns", "Service kube-system/kube-dns", "EndpointSlice kube-system/kube-dns",
			"ClusterRole system:aggregated-metrics-reader", "ClusterRole system:metrics-server", "ClusterRoleBinding system:metrics-server", "ClusterRoleBinding metrics-server:system:auth-delegator", "Service kube-system/metrics-server", "APIService v1beta1.metrics.k8s.io", "others", "StorageClass local-path"}},
		{[]string{"dns", "metrics"}, []string{"others", "StorageClass local-path"}},
		{[]string{"storage", "services", "metrics"}, []string{"ClusterRole k3s9p:coredns", "ClusterRoleBinding k3s9p:coredns", "Service kube-system/kube-dns", "EndpointSlice kube-system/kube-dns", "others"}},
	} {
		n.options.Disable = step.disable
		// kube-proxy has the address that pods are told for the Service.
		endpoint := "10.42.0.1"
		if !n.options.has(servicesAddOn) {
			endpoint = "10.43.0.10"
		}
		if !n.options.has(metricsAddOn) {
			if err := n.metricsKubeconfig(); err != nil {
				t.Errorf("without metrics-server its kubeconfig: %v", err)
			}
		}
		names, err := n.writeAddOns()
		if err != nil {
			t.Fatal(err)
		}
		there, err := os.ReadDir(n.paths.Manifests())
		if err != nil || len(there) != len(names)+1 {
			t.Errorf("without %v there are %v, %v", step.disable, there, err)
		}
		var objects []string
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join(n.paths.Manifests(), name))
			if err != nil {
				t.Fatal(err)
			}
			these, err := manifest.Parse(text)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, o := range these {
				objects = append(objects, o.Ref.String())
				if o.Ref.String() == "EndpointSlice kube-system/kube-dns" && !strings.Contains(string(o.JSON), `"addresses":["`+endpoint+`"]`) {
					t.Errorf("without %v the endpoint of the DNS server is %s", step.disable, o.JSON)
				}
				if o.Ref.String() == "Service kube-system/kube-dns" && !strings.Contains(string(o.JSON), `"clusterIP":"10.43.0.10"`) {
					t.Errorf("the Service of the DNS server is %s", o.JSON)
				}
				if o.Ref.Kind == "ConfigMap" && !strings.Contains(string(o.JSON), `\"clusterCIDR\":\"10.42.0.0/16\"`) {
					t.Errorf("nodes that join are told %s", o.JSON)
				}
			}
		}
		i := slices.Index(step.objects, "others")
		if want := slices.Concat(step.objects[:i], others, step.objects[i+1:]); !slices.Equal(objects, want) {
			t.Errorf("without %v the objects are %q", step.disable, objects)
		}
	}
}
