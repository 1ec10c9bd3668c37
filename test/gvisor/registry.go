package gvisor

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// RegistryAddress is where a sandbox finds a [Registry].
const RegistryAddress = OutsideAddress + ":5000"

// Registry is a registry of images outside of a sandbox.
type Registry struct {
	// CA is who has signed its certificate, in PEM: what a sandbox's own
	// /etc/ssl/certs/ca-certificates.crt has to have.
	CA string

	t           *testing.T
	handler     http.Handler
	certificate tls.Certificate
}

// NewRegistry is an empty one that nobody reaches yet.
func NewRegistry(t *testing.T) *Registry {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IPAddresses: []net.IP{net.ParseIP(OutsideAddress)},
	}
	signed, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &Registry{
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})),
		t:  t, handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		certificate: tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key},
	}
}

// Push puts an image into it, and returns its reference.
func (r *Registry) Push(repository string, image v1.Image) string {
	r.t.Helper()
	config, err := image.RawConfigFile()
	r.must(err)
	digest, err := image.ConfigName()
	r.must(err)
	r.blob(repository, digest, bytes.NewReader(config))
	layers, err := image.Layers()
	r.must(err)
	for _, layer := range layers {
		digest, err := layer.Digest()
		r.must(err)
		content, err := layer.Compressed()
		r.must(err)
		r.blob(repository, digest, content)
		content.Close()
	}
	manifest, err := image.RawManifest()
	r.must(err)
	mediaType, err := image.MediaType()
	r.must(err)
	r.send(http.MethodPut, repository+"/manifests/1", string(mediaType), bytes.NewReader(manifest))
	return RegistryAddress + "/" + repository + ":1"
}

func (r *Registry) blob(repository string, digest v1.Hash, content io.Reader) {
	r.t.Helper()
	r.send(http.MethodPost, repository+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", content)
}

// send asks the registry without any network (OCI distribution specification, push).
func (r *Registry) send(method, path, contentType string, body io.Reader) {
	r.t.Helper()
	request := httptest.NewRequest(method, "/v2/"+path, body)
	request.Header.Set("Content-Type", contentType)
	recorder := httptest.NewRecorder()
	r.handler.ServeHTTP(recorder, request)
	if recorder.Code != http.StatusCreated {
		r.t.Fatalf("%s %s: the registry answers with %d: %s", method, path, recorder.Code, recorder.Body)
	}
}

func (r *Registry) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// Serve lets a sandbox reach it, until the test ends: see [Sandbox.Outside].
func (r *Registry) Serve(outside func(func() error) error) {
	r.t.Helper()
	var listener net.Listener
	err := outside(func() (err error) {
		listener, err = tls.Listen("tcp", RegistryAddress, &tls.Config{Certificates: []tls.Certificate{r.certificate}})
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	server := &http.Server{Handler: r.handler}
	go func() { _ = server.Serve(listener) }()
	r.t.Cleanup(func() { server.Close() })
}
