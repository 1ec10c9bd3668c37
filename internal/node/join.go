package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/hint"
)

// join makes this machine a node of the cluster: the first time it enrolls for the token,
// later it has what it got for that. Then it does what else there is to do.
func (n *Node) join(enroll func(context.Context) error, then ...func(context.Context) error) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if !n.paths.credentials() {
			if err := enroll(ctx); err != nil {
				return "", err
			}
		}
		client, err := newClient(n.paths.conf("kubelet"))
		if err != nil {
			return "", err
		}
		n.client = client
		if err := n.awaitServer(ctx); err != nil {
			return "", err
		}
		settings, err := readSettings(ctx, client)
		if err != nil {
			return "", err
		}
		n.options.Disable, n.cluster.KubeProxy = append(n.options.Disable, settings.Disable...), settings.KubeProxy
		if err := n.register(ctx); err != nil {
			return "", err
		}
		if err := n.awaitPodCIDR(ctx); err != nil {
			return "", err
		}
		_, err = plain(then...)(ctx)
		return fmt.Sprintf("node %s, pods in %s", n.cluster.NodeName, n.cluster.Pods), err
	}
}

// enroll gets a certificate for the token.
func (n *Node) enroll(ctx context.Context) error {
	j := n.options.Joining
	client, err := trusting(j.Server, j.Authority)
	if err != nil {
		return err
	}
	client.token = j.Token
	certificate, key, err := n.requestCertificate(ctx, client, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth, nil)
	if err != nil {
		return fmt.Errorf("get a certificate for the token: %w", err)
	}
	config, err := kubeconfigOf(clientcmd.Cluster{Server: j.Server, TLSServerName: apiserverName, CertificateAuthorityData: j.Authority}, certificate, key)
	if err != nil {
		return err
	}
	if err := writeFile(n.paths.pkiFile("ca.crt"), j.Authority, 0o644); err != nil {
		return err
	}
	return writeFile(n.paths.conf("kubelet"), config, 0o600)
}

// kubeconfigOf is the kubeconfig of who has a certificate and its key, as PEM.
func kubeconfigOf(cluster clientcmd.Cluster, certificate, key []byte) ([]byte, error) {
	const name = "k3s9p"
	return yaml.Marshal(clientcmd.Config{
		APIVersion: "v1", Kind: "Config", CurrentContext: name,
		Clusters:  []clientcmd.NamedCluster{{Name: name, Cluster: cluster}},
		AuthInfos: []clientcmd.NamedAuthInfo{{Name: name, AuthInfo: clientcmd.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}}},
		Contexts:  []clientcmd.NamedContext{{Name: name, Context: clientcmd.Context{Cluster: name, AuthInfo: name}}},
	})
}

// requestCertificate asks the cluster for a certificate of this node, and waits for it.
// It returns the certificate and its key as PEM.
func (n *Node) requestCertificate(ctx context.Context, client *client, signer string, usage certificatesv1.KeyUsage, addresses []net.IP) (certificate, key []byte, err error) {
	private, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	wish, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{Organization: []string{nodesGroup}, CommonName: nodeUser(n.cluster.NodeName)}, IPAddresses: addresses,
	}, private)
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(&certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "k3s9p-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: wish}),
			SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
		},
	})
	if err != nil {
		return nil, nil, err
	}
	answer, err := client.do(ctx, http.MethodPost, requestsPath, body)
	if err != nil {
		return nil, nil, err
	}
	var request certificatesv1.CertificateSigningRequest
	if err := json.Unmarshal(answer, &request); err != nil {
		return nil, nil, err
	}
	var no error
	err = n.supervisor.Await(ctx, func(ctx context.Context) error {
		if err := client.get(ctx, requestsPath+"/"+request.Name, &request); err != nil {
			return err
		}
		for _, c := range request.Status.Conditions {
			if c.Type != certificatesv1.CertificateApproved {
				no = fmt.Errorf("the request %s for a certificate is %s: %s: %s", request.Name, strings.ToLower(string(c.Type)), c.Reason, c.Message)
				return nil
			}
		}
		if len(request.Status.Certificate) == 0 {
			return fmt.Errorf("the request %s for a certificate has not been answered", request.Name)
		}
		return nil
	})
	return request.Status.Certificate, key, errors.Join(err, no)
}

// awaitServer waits for the server: it may come up at the same time.
func (n *Node) awaitServer(ctx context.Context) error {
	var no error
	said := false
	err := n.supervisor.Await(ctx, func(ctx context.Context) error {
		err := n.client.get(ctx, "/readyz", nil)
		var untrusted *tls.CertificateVerificationError
		if answered(err, http.StatusUnauthorized) || errors.As(err, &untrusted) && !outOfDate(err) { // a clock may be set yet
			no = hint.Add(fmt.Errorf("%s is not the server that this node has joined: %w", n.cluster.Server, err), "k3s9p down --purge, then k3s9p join with a token of that server")
			return nil
		}
		if err != nil && !said {
			said = true
			n.progress.Say("  waiting for the server %s: %v", n.cluster.Server, err)
		}
		return err
	})
	switch {
	case outOfDate(err):
		return hint.Add(fmt.Errorf("the certificate of %s is not taken: %w", n.cluster.Server, err), compareClocks)
	case err != nil:
		return unreachable(n.cluster.Server, err)
	}
	return no
}

// outOfDate reports whether a certificate was not taken because of its dates. One of two
// clocks may be wrong.
func outOfDate(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

const compareClocks = "compare the clocks of both machines; a server that has run for long may have to be started anew"

// allotment is how long the server may take to give a node its part of the cluster CIDR.
const allotment = 10 * time.Second

// awaitPodCIDR waits until the server has given the node its part of the cluster CIDR.
func (n *Node) awaitPodCIDR(ctx context.Context) error {
	limited, cancel := context.WithTimeoutCause(ctx, allotment, hint.Add(
		fmt.Errorf("the server gives this node no part of its cluster CIDR %s within %v: that has room for %d nodes", n.cluster.ClusterCIDR, allotment, 1<<(n.cluster.nodeBits()-n.cluster.ClusterCIDR.Bits())),
		"on the server: k3s9p kubectl delete node removes one that is gone"))
	defer cancel()
	return n.supervisor.Await(limited, func(ctx context.Context) error {
		var node corev1.Node
		if err := n.client.get(ctx, n.nodePath(), &node); err != nil {
			return err
		}
		if node.Spec.PodCIDR == "" {
			return errors.New("the node has no addresses for pods yet")
		}
		pods, err := netip.ParsePrefix(node.Spec.PodCIDR)
		if err != nil {
			return err
		}
		n.cluster.Pods = pods
		return n.cluster.save(n.paths)
	})
}

// servingCertificate gets what the kubelet serves with until down. It has the address of
// the node and no name: one might be that of the apiserver.
func (n *Node) servingCertificate(ctx context.Context) error {
	certificate, key, err := n.requestCertificate(ctx, n.client, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth, []net.IP{n.cluster.Address().AsSlice()})
	if err != nil {
		return fmt.Errorf("get a certificate for the kubelet: %w", err)
	}
	return n.writeServing(certificate, key)
}

// serverReached asks for the apiserver at its address on the pod network.
func (n *Node) serverReached(context.Context) error {
	server := netip.AddrPortFrom(gatewayOf(n.cluster.first()), port)
	if err := dials("tcp", server.String()); err != nil {
		return hint.Add(fmt.Errorf("the pod network of the server is not reached: %w", err), "all nodes have to be on one network, on which each reaches the others without a router")
	}
	return nil
}
