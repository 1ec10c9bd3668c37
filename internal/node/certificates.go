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

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
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
		return errors.Join(n.kubeletCertificate(), n.metricsKubeconfig())
	}
	// Nothing has used them yet, and kubeadm refuses a key without its certificate.
	if err := errors.Join(rmtree.Tree(n.paths.pki()), rmtree.Tree(n.paths.kubeconfigs())); err != nil {
		return err
	}
	// In one process: to start one of this size takes gVisor longer than what it is started for.
	if err := kubeadm(ctx, n.program("kubeadm"),
		"init", "phase", "certs", "all", "--config="+file, "--",
		"init", "phase", "kubeconfig", "all", "--config="+file, "--kubeconfig-dir="+n.paths.kubeconfigs()); err != nil {
		return err
	}
	if err := errors.Join(n.userKubeconfig(coredns, dnsUser), n.metricsKubeconfig(), n.kubeletCertificate()); err != nil {
		return err
	}
	return writeFile(n.paths.pkiFile(complete), nil, 0o600)
}

// authority is that of the cluster.
func (n *Node) authority() (tls.Certificate, error) {
	authority, err := tls.LoadX509KeyPair(n.paths.pkiFile("ca.crt"), n.paths.pkiFile("ca.key"))
	if err != nil {
		err = fmt.Errorf("read the authority of the cluster: %w", err)
	}
	return authority, err
}

// userKubeconfig makes the kubeconfig of a user that is no administrator, as kubeadm
// kubeconfig user does, unless there is one.
func (n *Node) userKubeconfig(conf, user string) error {
	file := n.paths.conf(conf)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	authority, err := n.authority()
	if err != nil {
		return err
	}
	data, err := kubeconfigBy(authority, user, clientcmd.Cluster{
		Server:                   fmt.Sprintf("https://%s:%d", n.cluster.Address(), port),
		CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate[0]}),
	})
	if err != nil {
		return err
	}
	return writeFile(file, data, 0o600)
}

// kubeconfigBy is the kubeconfig of a user whom an authority for clients has given a
// certificate.
func kubeconfigBy(authority tls.Certificate, user string, cluster clientcmd.Cluster) ([]byte, error) {
	certificate, key, err := issue(authority, x509.Certificate{
		Subject:     pkix.Name{CommonName: user},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("make the certificate of %s: %w", user, err)
	}
	return kubeconfigOf(cluster, certificate, key)
}

// kubeletCertificate makes what the kubelet serves with until down, signed by the
// authority of the cluster: who asks it can check it. Without one the kubelet signs
// for itself, with two RSA keys, which takes gVisor half a second.
func (n *Node) kubeletCertificate() error {
	authority, err := n.authority()
	if err != nil {
		return err
	}
	certificate, key, err := issue(authority, x509.Certificate{
		Subject:     pkix.Name{Organization: []string{nodesGroup}, CommonName: nodeUser(n.cluster.NodeName)},
		DNSNames:    []string{n.cluster.NodeName, "localhost"},
		IPAddresses: []net.IP{n.cluster.Address().AsSlice(), net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("make the kubelet's certificate: %w", err)
	}
	return n.writeServing(certificate, key)
}

// issue makes a key and a certificate for it that is valid as long as that of the
// authority, and returns both as PEM.
func issue(authority tls.Certificate, wish x509.Certificate) (certificate, key []byte, err error) {
	private, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	wish.NotBefore, wish.NotAfter = authority.Leaf.NotBefore, authority.Leaf.NotAfter
	wish.KeyUsage = x509.KeyUsageDigitalSignature
	signed, err := x509.CreateCertificate(rand.Reader, &wish, authority.Leaf, private.Public(), authority.PrivateKey)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), key, err
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

// kubeadm runs commands of it, which "--" separates.
func kubeadm(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	// It ends before a collection of its garbage has paid.
	cmd.Env = append(os.Environ(), "GOGC=off")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubeadm %s: %w: %s", strings.Join(args[:min(4, len(args))], " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
