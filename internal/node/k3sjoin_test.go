package node

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"

	"k3s9p/internal/config"
)

// supervisorOfK3s answers as the supervisor in k3s does, by TLS. It takes one token.
func supervisorOfK3s(t *testing.T, token string, asked *http.Request) (server string, authority []byte) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cacerts", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(authority) })
	mux.HandleFunc("POST /v1-k3s/client-kubelet.crt", func(w http.ResponseWriter, r *http.Request) {
		*asked = *r
		body, err := io.ReadAll(r.Body)
		request, parseErr := x509.ParseCertificateRequest(body)
		switch {
		case r.Header.Get("Authorization") != "Bearer "+token:
			http.Error(w, "not authorized", http.StatusUnauthorized)
		case r.Header.Get("k3s-Node-Password") == "of another node":
			http.Error(w, "password does not match", http.StatusForbidden)
		case err != nil || parseErr != nil || request.CheckSignature() != nil:
			http.Error(w, fmt.Sprint(err, parseErr), http.StatusInternalServerError)
		default:
			fmt.Fprint(w, "a certificate")
		}
	})
	private, _, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, DNSNames: []string{apiserverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	authority = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	https := httptest.NewUnstartedServer(mux)
	https.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: private}}}
	https.StartTLS()
	t.Cleanup(https.Close)
	return https.URL, authority
}

// k3s tells everybody its authority, and a token names that by the hash of its file.
func TestGreetingOfK3s(t *testing.T) {
	server, authority := supervisorOfK3s(t, "", new(http.Request))
	got, err := askK3s(t.Context(), server)
	if err != nil || string(got.authority) != string(authority) || got.tokens != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	token := joinToken{authority: fmt.Sprintf("%x", sha256.Sum256(authority)), bootstrap: "abcdef.0123456789abcdef"}
	a := k3sAdmission()
	if err := a.recognizes(got.authority, server, token); err != nil {
		t.Error(err)
	}
	token.authority = strings.Repeat("0", 64)
	if err := a.recognizes(got.authority, server, token); err == nil || !strings.Contains(err.Error(), "the token is of another cluster") {
		t.Errorf("of another cluster: %v", err)
	}
	for _, text := range []string{"", "no certificate", string(authority) + string(authority)} {
		if hash, err := a.hash([]byte(text)); err == nil {
			t.Errorf("%.20q has the hash %s", text, hash)
		}
	}
	other := httptest.NewTLSServer(http.NotFoundHandler())
	defer other.Close()
	if _, err := askK3s(t.Context(), other.URL); err == nil || !strings.Contains(err.Error(), "has no cluster that this file can join") || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("not k3s: %v", err)
	}
	refusal := refused(&statusError{code: http.StatusUnauthorized}, got, server, token)
	if !strings.Contains(refusal.Error(), "refuses the token abcdef: there is none of that id (any more), or it has another secret") {
		t.Error(refusal)
	}
}

// A node gets its certificate for the token, says who it is by a password that stays the
// same, and leaves to the agent what that needs.
func TestEnrollWithK3s(t *testing.T) {
	var asked http.Request
	const token = "abcdef.0123456789abcdef"
	server, authority := supervisorOfK3s(t, token, &asked)
	node := func(token string) *Node {
		n := k3sNode(t, Options{Joining: &Joining{Server: server, Token: token, Authority: authority}})
		n.cluster.Server = server
		return n
	}
	n := node(token)
	if err := n.enrollK3s(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := asked.Header.Get("k3s-Node-Name"); name != "n" {
		t.Errorf("it asks for the node %q", name)
	}
	password, err := os.ReadFile(n.paths.nodePassword())
	if err != nil || strings.TrimSpace(string(password)) != asked.Header.Get("k3s-Node-Password") || len(password) != 33 {
		t.Errorf("the password is %q, and it said %q, %v", password, asked.Header.Get("k3s-Node-Password"), err)
	}
	want := fmt.Sprintf("K10%x::%s\n", sha256.Sum256(authority), token)
	if data, err := os.ReadFile(n.paths.k3sToken()); err != nil || string(data) != want {
		t.Errorf("the agent's token is %q, %v", data, err)
	}
	for _, secret := range []string{n.paths.nodePassword(), n.paths.k3sToken(), n.paths.conf("kubelet")} {
		if info, err := os.Stat(secret); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, info, err)
		}
	}
	if !n.paths.credentials() {
		t.Error("it has not joined")
	}
	if cluster, err := clusterIn(n.paths.conf("kubelet")); err != nil || cluster.Server != server || cluster.TLSServerName != apiserverName {
		t.Errorf("it asks %+v, %v", cluster, err)
	}
	before := asked.Header.Get("k3s-Node-Password")
	if err := n.enrollK3s(t.Context()); err != nil || asked.Header.Get("k3s-Node-Password") != before {
		t.Errorf("once more: %v, by another password", err)
	}

	if err := node("abcdef.ffffffffffffffff").enrollK3s(t.Context()); err == nil || !strings.Contains(err.Error(), "get a certificate for the token") {
		t.Errorf("another token: %v", err)
	}
	impostor := node(token)
	if err := writeFile(impostor.paths.nodePassword(), []byte("of another node\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := impostor.enrollK3s(t.Context()); err == nil || !strings.Contains(err.Error(), "delete --namespace kube-system secret n.node-password.k3s") || impostor.paths.credentials() {
		t.Errorf("the name of another node: %v", err)
	}
}

// An agent is told its server and nothing that is its server's to say.
func TestConfigureAgent(t *testing.T) {
	n := k3sNode(t, Options{KubeletArgs: []string{"max-pods=20"}, K3sArgs: []string{"--node-label=zone=a"}})
	n.cluster.Server, n.cluster.Pods = "https://192.0.2.2:6443", netip.MustParsePrefix("10.42.1.0/25")
	n.cluster.ClusterCIDR = netip.MustParsePrefix("10.42.0.0/25")
	n.plan.Settings = settingsOf(n.paths, n.cluster, n.bundle)
	n.plan.Settings.Network.Services = config.ServiceProxy
	n.shareAddOns()
	if err := n.configureK3s(); err != nil {
		t.Fatal(err)
	}
	for _, arg := range []string{"agent", "--server=https://192.0.2.2:6443", "--token-file=" + n.paths.at("k3s", "token"), "--data-dir=" + n.paths.at("k3s"), "--node-name=n",
		"--node-ip=10.42.1.1", "--pause-image=k3s9p.local/pause:1", "--kubelet-arg=max-pods=20", "--node-label=zone=a"} {
		if !slices.Contains(n.k3sArgs, arg) {
			t.Errorf("%q is not in %q", arg, n.k3sArgs)
		}
	}
	for _, arg := range n.k3sArgs {
		for _, ofServers := range []string{"--cluster-cidr", "--service-cidr", "--disable", "--flannel-backend", "--advertise-address", "--write-kubeconfig", "--kube-"} {
			if strings.HasPrefix(arg, ofServers) {
				t.Errorf("k3s agent has no %s", arg)
			}
		}
	}
	if ports := ownPorts(n.options, n.cluster); !slices.Contains(ports, listener{k3s, "tcp", "127.0.0.1:6444"}) || slices.Contains(ports, listener{k3s, "tcp", ":6443"}) {
		t.Errorf("its ports are %v", ports)
	}
}

// What the agent has got at this start is what the next one begins with.
func TestKeepCertificate(t *testing.T) {
	n := k3sNode(t, Options{})
	if err := n.keepCertificate(t.Context()); err == nil {
		t.Error("there is nothing to keep")
	}
	cluster := clientcmd.Cluster{Server: "https://192.0.2.2:6443"}
	before, err := kubeconfigOf(cluster, []byte("old"), []byte("old key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{n.paths.conf("kubelet"): string(before), n.paths.k3s("agent", "client-kubelet.crt"): "new", n.paths.k3s("agent", "client-kubelet.key"): "new key"} {
		if err := writeFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.keepCertificate(t.Context()); err != nil {
		t.Fatal(err)
	}
	want, err := kubeconfigOf(cluster, []byte("new"), []byte("new key"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(n.paths.conf("kubelet")); err != nil || string(got) != string(want) {
		t.Errorf("it keeps %s, %v", got, err)
	}
}
