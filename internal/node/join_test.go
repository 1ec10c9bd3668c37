package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k3s9p/internal/progress"
	"k3s9p/internal/supervisor"
)

// testdata/ca.crt is the authority of a cluster, made by kubeadm; this is its hash by
// openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | sha256sum.
const authorityHash = "053ffbb5ae43a835f365f46b0beee1e9688ef24a8799d4974d40c264da0f590c"

func TestTokens(t *testing.T) {
	authority, err := os.ReadFile("testdata/ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := hashOf(authority)
	if err != nil || hash != authorityHash {
		t.Errorf("the hash of the authority is %s, %v", hash, err)
	}
	token := joinToken{hash, "abcdef.0123456789abcdef"}
	if again, err := parseToken(token.String()); err != nil || again != token || again.id() != "abcdef" {
		t.Errorf("the token reads %+v, %v", again, err)
	}
	for _, text := range []string{"", "abcdef.0123456789abcdef", token.String() + "0", token.String()[len("K10"):], strings.ToUpper(token.String()), "K10" + hash + "::server:0123456789abcdef"} {
		if _, err := parseToken(text); err == nil || !strings.Contains(err.Error(), "hint: ") {
			t.Errorf("%q is taken for a token: %v", text, err)
		}
	}
	if _, err := hashOf([]byte("no certificate")); err == nil {
		t.Error("what is no certificate has a hash")
	}
}

func TestServerURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://192.0.2.2:6443":  "https://192.0.2.2:6443",
		"https://192.0.2.2":       "https://192.0.2.2:6443",
		"https://first.example/":  "https://first.example:6443",
		"https://first:443":       "https://first:443",
		"":                        "",
		"192.0.2.2:6443":          "",
		"http://192.0.2.2:6443":   "",
		"https://":                "",
		"https://192.0.2.2/api":   "",
		"https://user@192.0.2.2/": "",
	} {
		got, err := serverURL(text)
		if got != want || (err == nil) != (want != "") || err != nil && !strings.Contains(err.Error(), "hint: ") {
			t.Errorf("%q is %q, %v", text, got, err)
		}
	}
}

// A directory is that of one cluster.
func TestADataDirectoryJoinsOneCluster(t *testing.T) {
	p := Paths{t.TempDir()}
	networks := Joining{Server: "https://192.0.2.2:6443", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}
	o := Options{NodeName: "second", Joining: &networks}
	if _, err := settle(p, o, "kubernetes", prefixes("10.42.7.0/24")); err == nil || !strings.Contains(err.Error(), "overlaps with this machine's route to 10.42.7.0/24") {
		t.Errorf("a network that is not free: %v", err)
	}
	c, err := settle(p, o, "kubernetes", prefixes("192.0.2.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	if !c.Joined() || c.Format <= format || c.PodCIDR().IsValid() {
		t.Errorf("before it has joined it is %+v", c)
	}
	c.Pods = netip.MustParsePrefix("10.42.1.0/24")
	if err := c.save(p); err != nil {
		t.Fatal(err)
	}
	if _, err := settle(p, Options{}, "kubernetes", nil); err == nil || !strings.Contains(err.Error(), "has not joined the cluster of https://192.0.2.2:6443 yet") {
		t.Errorf("up before it has joined: %v", err)
	}
	if err := writeFile(p.conf("kubelet"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := settle(p, Options{}, "kubernetes", nil); err != nil || again != c || again.Address().String() != "10.42.1.1" {
		t.Errorf("up after it has joined: %+v, %v", again, err)
	}
	if again, err := settle(p, Options{Joining: &Joining{Server: networks.Server}}, "kubernetes", nil); err != nil || again != c {
		t.Errorf("to join the same again: %+v, %v", again, err)
	}
	if _, err := settle(p, Options{Joining: &Joining{Server: "https://192.0.2.9:6443"}}, "kubernetes", nil); err == nil || !strings.Contains(err.Error(), "not of https://192.0.2.9:6443") {
		t.Errorf("to join another one: %v", err)
	}
	own := Paths{t.TempDir()}
	if c, err = settle(own, Options{NodeName: "first"}, "kubernetes", nil); err == nil {
		err = c.save(own)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := settle(own, o, "kubernetes", nil); err == nil || !strings.Contains(err.Error(), "has a cluster of its own") {
		t.Errorf("to join with a cluster of its own: %v", err)
	}
}

func nodeOf(name, pods, address string) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{addressAnnotation: address}},
		Spec:       corev1.NodeSpec{PodCIDR: pods},
	}
}

// A node gets routes to what is another node's to have, and to nothing else.
func TestRoutesToOtherNodes(t *testing.T) {
	c := Cluster{NodeName: "here", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}
	got := routesTo([]corev1.Node{
		nodeOf("here", "10.42.0.0/24", "192.0.2.2"),
		nodeOf("there", "10.42.1.0/24", "192.0.2.3"),
		nodeOf("new", "", "192.0.2.4"),
		nodeOf("unreachable", "10.42.3.0/24", ""),
		nodeOf("mine", "10.42.0.128/25", "192.0.2.5"),
		nodeOf("all", "10.0.0.0/8", "192.0.2.6"),
		nodeOf("elsewhere", "192.0.2.0/24", "192.0.2.7"),
		nodeOf("by-a-pod", "10.42.5.0/24", "10.42.0.9"),
		nodeOf("ipv6", "10.42.6.0/24", "2001:db8::1"),
	}, c)
	want := map[netip.Prefix]netip.Addr{netip.MustParsePrefix("10.42.1.0/24"): netip.MustParseAddr("192.0.2.3")}
	if !maps.Equal(got, want) {
		t.Errorf("the routes are %v", got)
	}
}

// What a node may serve with is a certificate of its own address.
func TestServes(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own := net.IPv4(10, 42, 1, 1)
	node := nodeOf("second", "10.42.1.0/24", "192.0.2.3")
	for name, c := range map[string]struct {
		node    corev1.Node
		user    string
		request x509.CertificateRequest
		refused string
	}{
		"its own":           {node: node},
		"another node's":    {node: node, request: x509.CertificateRequest{IPAddresses: []net.IP{net.IPv4(10, 42, 0, 1)}}, refused: "addresses [10.42.0.1]"},
		"one more":          {node: node, request: x509.CertificateRequest{IPAddresses: []net.IP{own, net.IPv4(10, 43, 0, 1)}}, refused: "addresses"},
		"a name":            {node: node, request: x509.CertificateRequest{DNSNames: []string{apiserverName}}, refused: "more than an address"},
		"another user":      {node: node, user: "system:bootstrap:abcdef", refused: "is not the node"},
		"another subject":   {node: node, request: x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:sandbox"}}, refused: "its name is"},
		"before it has any": {node: nodeOf("second", "", ""), refused: "no addresses for pods"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.request
			if r.Subject.CommonName == "" {
				r.Subject.CommonName = nodeUser("second")
			}
			if r.IPAddresses == nil {
				r.IPAddresses = []net.IP{own}
			}
			encoded, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
			if err != nil {
				t.Fatal(err)
			}
			user := nodeUser("second")
			if c.user != "" {
				user = c.user
			}
			err = serves(c.node, certificatesv1.CertificateSigningRequestSpec{Username: user, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: encoded})})
			if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A node that joins has the steps of one with a control plane, except for what that needs.
func TestStepsOfNodes(t *testing.T) {
	n := &Node{}
	steps := func(c Cluster) (titles []string) {
		for _, s := range n.distribution().steps(n) {
			if s.isOf(c) {
				titles = append(titles, s.title)
			}
		}
		return titles
	}
	server, joined := steps(Cluster{}), steps(Cluster{Server: "https://192.0.2.2:6443"})
	for _, title := range []string{"start the datastore, make certificates", "start the control plane"} {
		if !slices.Contains(server, title) || slices.Contains(joined, title) {
			t.Errorf("%q is not of the server only", title)
		}
	}
	if slices.Contains(server, "join the cluster") || !slices.Contains(joined, "join the cluster") {
		t.Errorf("a server has the steps %q, a node that joins %q", server, joined)
	}
}

// A server whose certificate is not valid by this machine's clock may be the right one: it
// is waited for, and nobody is told to begin anew.
func TestServerOfAnotherTime(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: tomorrow, NotAfter: tomorrow.Add(time.Hour), DNSNames: []string{apiserverName},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}
	server.StartTLS()
	defer server.Close()
	client, err := trusting(server.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	client.http.Timeout = 10 * time.Second
	n := &Node{client: client, cluster: Cluster{Server: server.URL}, progress: progress.New(false), supervisor: supervisor.New(t.TempDir(), slog.New(slog.DiscardHandler), nil)}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	awaited := n.awaitServer(ctx)
	if ctx.Err() == nil {
		t.Error("it was not waited for")
	}
	asked := client.get(t.Context(), "/", nil)
	for name, err := range map[string]error{"a node that has joined": awaited, "one that joins": refused(asked, greeting{}, server.URL, joinToken{})} {
		if err == nil || !strings.Contains(err.Error(), "compare the clocks") || strings.Contains(err.Error(), "purge") {
			t.Errorf("%s is told: %v", name, err)
		}
	}
}
