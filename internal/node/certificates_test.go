package node

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"testing"
	"time"

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// A user asks the apiserver of the node, as whom the authority of the cluster vouches for
// and as no administrator. A kubeconfig that is there stays.
func TestUserKubeconfig(t *testing.T) {
	n := &Node{paths: Paths{t.TempDir()}, cluster: Cluster{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16")}}
	authority, key := newAuthority(t, "kubernetes")
	if err := errors.Join(writeFile(n.paths.pkiFile("ca.crt"), authority, 0o644), writeFile(n.paths.pkiFile("ca.key"), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{dnsUser, metricsUser} {
		if err := n.userKubeconfig(coredns, user); err != nil {
			t.Fatal(err)
		}
	}
	server, subject := userOf(t, n.paths.conf(coredns), authority)
	if server != "https://10.42.0.1:6443" || subject.CommonName != dnsUser || len(subject.Organization) > 0 {
		t.Errorf("the DNS server asks %s, as %v", server, subject)
	}
	if info, err := os.Stat(n.paths.conf(coredns)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig is %v, %v", info.Mode(), err)
	}
	if _, err := newClient(n.paths.conf(coredns)); err != nil {
		t.Error(err)
	}
}

// newAuthority is one that has signed itself, and its key, as PEM.
func newAuthority(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	private, key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	encoded, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: encoded}), key
}

// userOf is whom a kubeconfig asks, and as whom, if the authority vouches for that.
func userOf(t *testing.T, file string, authority []byte) (server string, user pkix.Name) {
	t.Helper()
	data, err := os.ReadFile(file)
	var config clientcmd.Config
	if err := errors.Join(err, yaml.Unmarshal(data, &config)); err != nil || len(config.Clusters) == 0 || len(config.AuthInfos) == 0 {
		t.Fatalf("the kubeconfig is %s, %v", data, err)
	}
	block, _ := pem.Decode(config.AuthInfos[0].AuthInfo.ClientCertificateData)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("the certificate of %v: %v", certificate.Subject, err)
	}
	return config.Clusters[0].Cluster.Server, certificate.Subject
}
