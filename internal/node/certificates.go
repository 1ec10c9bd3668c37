package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/rmtree"
)

// port is the apiserver's.
const port = 6443

// kubeletServing is the name of the files of what the kubelet serves with.
const kubeletServing = "kubelet-serving"

// validity of certificates: the ten years that kubeadm gives its authorities. A
// sandbox has nobody who would renew them.
const validity = "87600h"

// kubeadmConfig is what kubeadm's phases are told (kubeadm.k8s.io/v1beta4), with bootstrap
// tokens to make.
func kubeadmConfig(p Paths, c Cluster, version string, tokens ...map[string]any) ([]byte, error) {
	type object = map[string]any
	var config bytes.Buffer
	for _, document := range []object{
		{
			"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "InitConfiguration",
			"localAPIEndpoint": object{"advertiseAddress": c.Address().String(), "bindPort": port},
			"nodeRegistration": object{"name": c.NodeName, "criSocket": "unix://" + p.Containerd()},
			"bootstrapTokens":  tokens,
		},
		{
			"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration",
			"kubernetesVersion":           strings.Split(version, "+")[0],
			"certificatesDir":             p.pki(),
			"certificateValidityPeriod":   validity,
			"caCertificateValidityPeriod": validity,
			"encryptionAlgorithm":         "ECDSA-P256",
			// An external datastore needs no certificates of etcd; kine is a socket.
			"etcd":       object{"external": object{"endpoints": []string{"http://127.0.0.1:2379"}}},
			"networking": object{"serviceSubnet": c.ServiceCIDR.String(), "podSubnet": c.ClusterCIDR.String()},
			"apiServer":  object{"certSANs": []string{"127.0.0.1", "localhost", c.NodeName}},
		},
	} {
		data, err := yaml.Marshal(document)
		if err != nil {
			return nil, err
		}
		config.WriteString("---\n")
		config.Write(data)
	}
	return config.Bytes(), nil
}

// certificates makes the authorities, certificates and kubeconfigs, or keeps those
// that are there, as kubeadm does.
func (n *Node) certificates(ctx context.Context) error {
	config, err := kubeadmConfig(n.paths, n.cluster, n.version)
	if err != nil {
		return err
	}
	file := n.paths.etc("kubeadm.yaml")
	if err := writeFile(file, config, 0o600); err != nil {
		return err
	}
	const complete = "complete" // kubeadm was not interrupted
	if _, err := os.Stat(n.paths.pkiFile(complete)); err == nil {
		return errors.Join(n.kubeletCertificate(), n.metricsKubeconfig(ctx))
	}
	// Nothing has used them yet, and kubeadm refuses a key without its certificate.
	if err := errors.Join(rmtree.Tree(n.paths.pki()), rmtree.Tree(n.paths.kubeconfigs())); err != nil {
		return err
	}
	if _, err := n.kubeadm(ctx, "init", "phase", "certs", "all", "--config="+file); err != nil {
		return err
	}
	var rest errgroup.Group
	rest.Go(func() error {
		_, err := n.kubeadm(ctx, "init", "phase", "kubeconfig", "all", "--config="+file, "--kubeconfig-dir="+n.paths.kubeconfigs())
		return err
	})
	rest.Go(func() error {
		dns, err := n.userKubeconfig(ctx, dnsUser)
		if err != nil {
			return err
		}
		return writeFile(n.paths.conf("coredns"), dns, 0o600)
	})
	rest.Go(func() error { return n.metricsKubeconfig(ctx) })
	rest.Go(n.kubeletCertificate)
	if err := rest.Wait(); err != nil {
		return err
	}
	return writeFile(n.paths.pkiFile(complete), nil, 0o600)
}

// userKubeconfig makes the kubeconfig of a user that is no administrator.
func (n *Node) userKubeconfig(ctx context.Context, user string) ([]byte, error) {
	return n.kubeadm(ctx, "kubeconfig", "user", "--config="+n.paths.etc("kubeadm.yaml"), "--client-name="+user, "--validity-period="+validity)
}

// kubeletCertificate makes what the kubelet serves with until down, signed by the
// authority of the cluster: who asks it can check it. Without one the kubelet signs
// for itself, with two RSA keys, which takes gVisor half a second.
func (n *Node) kubeletCertificate() error {
	authority, err := tls.LoadX509KeyPair(n.paths.pkiFile("ca.crt"), n.paths.pkiFile("ca.key"))
	if err != nil {
		return fmt.Errorf("read the authority of the cluster: %w", err)
	}
	key, encoded, err := newKey()
	if err != nil {
		return err
	}
	certificate, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{nodesGroup}, CommonName: nodeUser(n.cluster.NodeName)},
		DNSNames:    []string{n.cluster.NodeName, "localhost"},
		IPAddresses: []net.IP{n.cluster.Address().AsSlice(), net.IPv4(127, 0, 0, 1)},
		NotBefore:   authority.Leaf.NotBefore,
		NotAfter:    authority.Leaf.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, authority.Leaf, key.Public(), authority.PrivateKey)
	if err != nil {
		return fmt.Errorf("make the kubelet's certificate: %w", err)
	}
	return n.writeServing(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), encoded)
}

// newKey makes a private key, and returns it as PEM too.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), err
}

// writeServing writes what the kubelet serves with.
func (n *Node) writeServing(certificate, key []byte) error {
	return errors.Join(
		writeFile(n.paths.etc(kubeletServing+".crt"), certificate, 0o644),
		writeFile(n.paths.etc(kubeletServing+".key"), key, 0o600))
}

func (n *Node) kubeadm(ctx context.Context, args ...string) ([]byte, error) {
	return kubeadm(ctx, n.program("kubeadm"), args...)
}

func kubeadm(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("kubeadm %s: %w: %s", strings.Join(args[:min(4, len(args))], " "), err, strings.TrimSpace(stderr.String()+string(output)))
	}
	return output, nil
}
