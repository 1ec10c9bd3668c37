package install

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k3s9p/internal/bundle"
	"k3s9p/internal/digest"
	"k3s9p/internal/proof/contract"
	"k3s9p/internal/release"
	"k3s9p/test/gvisor"
)

// page is a release page, on a server outside of the sandbox.
type page struct {
	t     *testing.T
	dir   string // a directory per version
	key   string // the file of the maintainer's key
	url   string
	trust []byte // the certificate of the server, in PEM
}

// port is where the server listens, outside.
const port = "8443"

func newPage(t *testing.T) *page {
	t.Helper()
	p := &page{t: t, dir: t.TempDir(), url: "https://" + net.JoinHostPort(gvisor.OutsideAddress, port)}
	p.key = p.newKey()
	return p
}

// newKey makes a key that signs releases, as docs/release.md says.
func (p *page) newKey() string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "key")
	p.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file)
	return file
}

func (p *page) run(args ...string) {
	p.t.Helper()
	if output, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %v\n%s", args, err, output)
	}
}

// publish puts a release of the program that is tested on the page.
func (p *page) publish(version string) {
	p.t.Helper()
	dir, name := filepath.Join(p.dir, version), "k3s9p-linux-"+runtime.GOARCH
	p.must(os.MkdirAll(dir, 0o755))
	b, err := bundle.Open(gvisor.Program(contract.Launcher))
	p.must(err)
	defer b.Close()
	file, err := os.Create(filepath.Join(dir, name))
	p.must(err)
	_, err = b.WriteRelease(file, version)
	p.must(err)
	p.must(file.Close())
	sum, _, err := digest.File(file.Name())
	p.must(err)
	p.must(os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sum+"  "+name+"\n"), 0o644))
	p.sign(version, p.key)

	public, err := os.ReadFile(p.key + ".pub")
	p.must(err)
	signers, err := release.ReadSigners(fmt.Appendf(nil, "k3s9p namespaces=\"file\" %s", public))
	p.must(err)
	p.must(os.WriteFile(filepath.Join(dir, "install.sh"), []byte(release.InstallScript(version, p.url, signers)), 0o644))
}

// sign signs a release by hand.
func (p *page) sign(version, key string) {
	p.t.Helper()
	sums := filepath.Join(p.dir, version, "SHA256SUMS")
	p.must(os.RemoveAll(sums + ".sig"))
	p.run("ssh-keygen", "-Y", "sign", "-q", "-f", key, "-n", "file", sums)
}

// certify makes the certificate of the server.
func (p *page) certify() tls.Certificate {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "release page"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(gvisor.OutsideAddress)},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	p.must(err)
	p.trust = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve answers in the network outside of a sandbox.
func (p *page) serve(within func(func() error) error, certificate tls.Certificate) {
	p.t.Helper()
	var listener net.Listener
	p.must(within(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(gvisor.OutsideAddress, port))
		return err
	}))
	log := p.t.Output()
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(log, "asked for", r.URL.Path)
			http.FileServer(http.Dir(p.dir)).ServeHTTP(w, r)
		}),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	p.t.Cleanup(func() { _ = server.Close() })
}

func (p *page) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}
