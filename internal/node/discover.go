package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"golang.org/x/mod/semver"
	corev1 "k8s.io/api/core/v1"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	bootstrap "k8s.io/cluster-bootstrap/token/api"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/hint"
	"k3s9p/internal/record"
)

// Joining is a cluster that this machine is going to join.
type Joining struct {
	Server string `json:"server"` // the URL of its apiserver
	// What follows is empty for a node that has joined already.
	Token       string       `json:"token,omitempty"` // ID.SECRET
	Authority   []byte       `json:"authority,omitempty"`
	ClusterCIDR netip.Prefix `json:"clusterCIDR,omitzero"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR,omitzero"`
	KubeProxy   bool         `json:"kubeProxy,omitempty"`
}

// apiserverName is a name that the apiserver's certificate has whatever its address is.
const apiserverName = "kubernetes"

const (
	clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/" + bootstrap.ConfigMapClusterInfo
	settingsPath    = "/api/v1/namespaces/kube-system/configmaps/k3s9p"
	nodesPath       = "/api/v1/nodes"
)

// clusterSettings are what a server tells nodes that join (addons/nodes.yaml).
type clusterSettings struct {
	ClusterCIDR netip.Prefix `json:"clusterCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	Disable     []string     `json:"disable"`
	// KubeProxy says that kube-proxy serves Services, on all nodes: k3s has it in it, and the
	// server decides.
	KubeProxy bool `json:"kubeProxy,omitempty"`
}

func readSettings(ctx context.Context, c *client) (s clusterSettings, err error) {
	var object corev1.ConfigMap
	if err := c.get(ctx, settingsPath, &object); err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(object.Data["settings"]), &s); err != nil {
		return s, fmt.Errorf("the settings of the cluster: %w", err)
	}
	return s, nil
}

// Discover asks a server whether this machine can join its cluster, and returns the
// options for Up. It changes nothing, neither here nor there. The server has to prove
// that it is the one of the token before it is told the token.
func Discover(ctx context.Context, o Options, server, token string) (Options, error) {
	server, err := serverURL(server)
	if err != nil {
		return o, err
	}
	p := Paths{o.DataDir}
	there, err := readCluster(p)
	if err != nil {
		return o, err
	}
	o.Joining = &Joining{Server: server}
	if there != nil && (!there.Joined() || p.credentials()) {
		return o, nil // it is not the token that matters
	}
	t, err := parseToken(token)
	if err != nil {
		return o, err
	}
	build, err := buildOf()
	if err != nil {
		return o, err
	}
	admission := distributionOf(build.Distribution).admission
	greeting, err := admission.ask(ctx, server)
	if err != nil {
		return o, err
	}
	if err := admission.recognizes(greeting.authority, server, t); err != nil {
		return o, err
	}
	o.Joining.Authority = greeting.authority
	client, err := trusting(server, o.Joining.Authority)
	if err != nil {
		return o, err
	}
	client.token, o.Joining.Token = t.bootstrap, t.bootstrap
	settings, err := readSettings(ctx, client)
	if err != nil {
		return o, refused(err, greeting, server, t)
	}
	o.Joining.ClusterCIDR, o.Joining.ServiceCIDR, o.Joining.KubeProxy = settings.ClusterCIDR, settings.ServiceCIDR, settings.KubeProxy
	return o, welcome(ctx, client, o, build)
}

// serverURL is the URL of an apiserver as a user names it.
func serverURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return "", hint.Add(fmt.Errorf("--server %q is not the URL of an apiserver", text), "--server https://ADDRESS:%d, as k3s9p token create prints it", port)
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), fmt.Sprint(port))
	}
	return "https://" + host, nil
}

// greeting is what a server tells everybody of its cluster.
type greeting struct {
	authority []byte          // in PEM
	tokens    map[string]bool // the ids of those that there are; nil if it does not tell
}

// anybody is a client that does not know yet whose server it asks: the token says that,
// see recognizes.
func anybody(server string) *client {
	return clientOf(server, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // nothing is sent
}

// closed is the error about a server that answers, and has no cluster for other nodes.
func closed(server string, err error) error {
	var status *statusError
	if !errors.As(err, &status) {
		return unreachable(server, err)
	}
	return hint.Add(fmt.Errorf("%s has no cluster that this file can join: %w", server, err),
		"k3s9p token create on the server makes a token, and lets nodes join; both machines have to have a k3s9p of the same distribution")
}

// clusterInfo is the greeting of a server that kubeadm has made tokens for.
func clusterInfo(ctx context.Context, server string) (greeting, error) {
	var info corev1.ConfigMap
	if err := anybody(server).get(ctx, clusterInfoPath, &info); err != nil {
		return greeting{}, closed(server, err)
	}
	var config clientcmd.Config
	if err := yaml.Unmarshal([]byte(info.Data[bootstrap.KubeConfigKey]), &config); err != nil || len(config.Clusters) == 0 {
		return greeting{}, errors.Join(fmt.Errorf("%s does not say which cluster it is of", server), err)
	}
	g := greeting{config.Clusters[0].Cluster.CertificateAuthorityData, make(map[string]bool)}
	for key := range info.Data {
		if id, ok := strings.CutPrefix(key, bootstrap.JWSSignatureKeyPrefix); ok {
			g.tokens[id] = true
		}
	}
	return g, nil
}

// unreachable is the error about a server that does not answer.
func unreachable(server string, err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // it repeats the URL
	}
	return hint.Add(fmt.Errorf("the server %s is not reached: %w", server, err), "k3s9p status on the server shows whether it runs; its port has to be open to this machine")
}

// recognizes returns an error if the authority of a server is not the one of the token.
func (a admission) recognizes(authority []byte, server string, t joinToken) error {
	hash, err := a.hash(authority)
	if err != nil {
		return fmt.Errorf("%s: %w", server, err)
	}
	if hash != t.authority {
		return hint.Add(fmt.Errorf("the token is of another cluster than %s: it names the authority %s…, and that one has %s…", server, t.authority[:12], hash[:12]),
			"k3s9p token create on that server makes one for it")
	}
	return nil
}

// trusting is a client of an apiserver whose certificate is of an authority.
func trusting(server string, authority []byte) (*client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, errors.New("the cluster's authority is no certificate in PEM")
	}
	return clientOf(server, &tls.Config{RootCAs: pool, ServerName: apiserverName}), nil
}

// refused says why a server does not take a token.
func refused(err error, g greeting, server string, t joinToken) error {
	const another = "k3s9p token create on the server makes another one"
	var status *statusError
	var untrusted *tls.CertificateVerificationError
	switch {
	case answered(err, http.StatusUnauthorized) && g.tokens == nil:
		return hint.Add(fmt.Errorf("%s refuses the token %s: there is none of that id (any more), or it has another secret", server, t.id()), "copy all of the token, or: "+another)
	case answered(err, http.StatusUnauthorized) && g.tokens[t.id()]:
		return hint.Add(fmt.Errorf("%s refuses the token: it has a token %s, but with another secret", server, t.id()), "copy all of the token, or: "+another)
	case answered(err, http.StatusUnauthorized):
		return hint.Add(fmt.Errorf("%s refuses the token: it has no token %s (any more); it has expired, or was deleted", server, t.id()), another)
	case outOfDate(err):
		return hint.Add(fmt.Errorf("the certificate of %s is not taken because of its dates: %w", server, err), compareClocks)
	case errors.As(err, &untrusted):
		return hint.Add(fmt.Errorf("%s says that it is of the token's cluster, and its certificate is not: %w", server, untrusted.Err), "something between answers in its place")
	case errors.As(err, &status):
		return hint.Add(fmt.Errorf("%s says nothing to nodes that join: %w", server, err), "its cluster has to be one of k3s9p; an older one is brought up again by this version")
	}
	return unreachable(server, err)
}

// welcome looks whether the cluster can have this node.
func welcome(ctx context.Context, client *client, o Options, build record.Build) error {
	name, err := o.nodeName()
	if err != nil {
		return err
	}
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := client.get(ctx, "/version", &version); err != nil {
		return unreachable(client.server, err)
	}
	// https://kubernetes.io/releases/version-skew-policy/#kubelet
	ours := kubernetesVersion(build)
	if older(semver.MajorMinor(numbers(version.GitVersion)), semver.MajorMinor(numbers(ours))) {
		return hint.Add(fmt.Errorf("this file has Kubernetes %s, and that of %s is older: %s", ours, client.server, version.GitVersion), "bring up the server with this k3s9p first")
	}
	err = client.get(ctx, nodesPath+"/"+name, nil)
	switch {
	case answered(err, http.StatusNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("ask %s whether it has a node %s: %w", client.server, name, err)
	}
	return hint.Add(fmt.Errorf("the cluster of %s has a node %s already", client.server, name), "--node-name gives this one another name; if it is a former node, on the server: k3s9p kubectl delete node %s", name)
}

// credentials reports whether the node has joined: what it got for its token is there.
func (p Paths) credentials() bool {
	_, err := os.Stat(p.conf("kubelet"))
	return err == nil
}

// joining is a cluster of which this machine becomes a node.
func (c Cluster) joining(j Joining, routes []netip.Prefix) (Cluster, error) {
	c.Format, c.Server, c.ClusterCIDR, c.ServiceCIDR, c.KubeProxy = joinedFormat, j.Server, j.ClusterCIDR, j.ServiceCIDR, j.KubeProxy
	for name, prefix := range map[string]netip.Prefix{"cluster CIDR": c.ClusterCIDR, "service CIDR": c.ServiceCIDR} {
		if route, ok := overlap(prefix, routes); ok {
			return c, hint.Add(fmt.Errorf("the %s of %s, %s, overlaps with this machine's route to %s", name, j.Server, prefix, route),
				"a new cluster with k3s9p up --cluster-cidr and --service-cidr has other networks")
		}
	}
	return c, nil
}

// sameServer returns an error if a data directory that exists is not that of a node of
// the cluster to join, or of one that did not finish joining.
func (c Cluster) sameServer(p Paths, o Options) error {
	const purge = "k3s9p down --purge removes it; --data-dir makes another one elsewhere"
	switch {
	case o.Joining == nil && c.Joined() && !p.credentials():
		return hint.Add(fmt.Errorf("the node in %s has not joined the cluster of %s yet", p.Data, c.Server), "k3s9p join --server %s --token TOKEN", c.Server)
	case o.Joining == nil:
		return nil
	case !c.Joined():
		return hint.Add(fmt.Errorf("%s has a cluster of its own, and joins no other", p.Data), purge)
	case c.Server != o.Joining.Server:
		return hint.Add(fmt.Errorf("the node in %s has joined the cluster of %s, not of %s", p.Data, c.Server, o.Joining.Server), purge)
	}
	return nil
}
