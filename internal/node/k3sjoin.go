package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"

	"k3s9p/internal/hint"
)

// k3sAdmission is that of k3s, whose supervisor answers at the port of the apiserver
// (pkg/server/handlers).
func k3sAdmission() admission {
	return admission{
		admin:     Paths.Kubeconfig,
		authority: func(p Paths) string { return p.k3s("server", "tls", "server-ca.crt") },
		hash:      hashOfK3s,
		group:     "system:bootstrappers:k3s:default-node-token",
		admit:     admitToK3s,
		ask:       askK3s,
	}
}

// k3sToken is the file with the token of an agent, all of it. It is of use until the agent
// has its certificates, and again if they are lost.
func (p Paths) k3sToken() string { return p.k3s("token") }

// nodePassword is the file with what k3s knows a node by that asks for certificates once
// more. An agent has it at /etc/rancher/node/password.
func (p Paths) nodePassword() string { return p.k3s("node", "password") }

// hashOfK3s is that of the file of an authority. Where another one certifies it, k3s hashes
// that; k3s9p brings up none of that kind.
func hashOfK3s(authority []byte) (string, error) {
	block, rest := pem.Decode(authority)
	switch {
	case block == nil:
		return "", errors.New("the cluster's authority is no certificate in PEM")
	case len(rest) > 0:
		return "", hint.Add(errors.New("the cluster's authority is a chain of certificates, which k3s9p join does not check"), "k3s agent --server URL --token TOKEN, started by hand, checks such a chain")
	}
	sum := sha256.Sum256(authority)
	return hex.EncodeToString(sum[:]), nil
}

// askK3s asks for the authority of the cluster, which k3s tells everybody.
func askK3s(ctx context.Context, server string) (greeting, error) {
	authority, err := anybody(server).do(ctx, http.MethodGet, "/cacerts", nil)
	if err != nil {
		return greeting{}, closed(server, err)
	}
	return greeting{authority: authority}, nil
}

// admitToK3s lets k3s make one, which prints all of the token.
func admitToK3s(ctx context.Context, p Paths, _ State, ttl time.Duration, description string) (string, error) {
	program, err := p.Program(k3s)
	if err != nil {
		return "", err
	}
	// The rest of the environment may be that of another k3s.
	cmd := exec.CommandContext(ctx, program, "token", "create", "--kubeconfig="+p.Kubeconfig(), "--ttl="+ttl.String(), "--description="+description)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "K3S_DATA_DIR=" + p.k3s()}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("k3s token create: %w: %s", err, oneLine(complaints.Bytes()))
	}
	made, err := parseToken(strings.TrimSpace(string(output)))
	if err != nil {
		return "", fmt.Errorf("k3s token create: %w", err)
	}
	return made.bootstrap, nil
}

// enrollK3s gets a certificate for the token, as an agent of k3s does
// (pkg/agent/config), and leaves to the agent what it needs to get its own.
func (n *Node) enrollK3s(ctx context.Context) error {
	j := n.options.Joining
	client, err := trusting(j.Server, j.Authority)
	if err != nil {
		return err
	}
	client.token = j.Token
	hash, err := hashOfK3s(j.Authority)
	if err != nil {
		return err
	}
	password, err := n.password()
	if err != nil {
		return err
	}
	if err := writeFile(n.paths.k3sToken(), []byte(joinToken{hash, j.Token}.String()+"\n"), 0o600); err != nil {
		return err
	}
	private, key, err := newKey()
	if err != nil {
		return err
	}
	wish, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		return err
	}
	client.header = http.Header{"K3s-Node-Name": {n.cluster.NodeName}, "K3s-Node-Password": {password}}
	certificate, err := client.do(ctx, http.MethodPost, "/v1-k3s/client-kubelet.crt", wish)
	if answered(err, http.StatusForbidden) {
		err = hint.Add(err, "a node of the name %s has been in the cluster; on the server: k3s9p kubectl delete --namespace kube-system secret %[1]s.node-password.k3s", n.cluster.NodeName)
	}
	if err != nil {
		return fmt.Errorf("get a certificate for the token: %w", err)
	}
	config, err := kubeconfigOf(clientcmd.Cluster{Server: j.Server, TLSServerName: apiserverName, CertificateAuthorityData: j.Authority}, certificate, key)
	if err != nil {
		return err
	}
	return writeFile(n.paths.conf("kubelet"), config, 0o600)
}

// keepCertificate keeps the certificate that the agent has just got for what k3s9p itself
// asks the server: those of k3s are valid for a year, and it gets one at each start.
func (n *Node) keepCertificate(context.Context) error {
	certificate, err := os.ReadFile(n.paths.k3s("agent", "client-kubelet.crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(n.paths.k3s("agent", "client-kubelet.key"))
	if err != nil {
		return err
	}
	cluster, err := clusterIn(n.paths.conf("kubelet"))
	if err != nil {
		return err
	}
	config, err := kubeconfigOf(cluster, certificate, key)
	if err != nil {
		return err
	}
	return writeFile(n.paths.conf("kubelet"), config, 0o600)
}

// password is the one of this node, which is made once.
func (n *Node) password() (string, error) {
	data, err := os.ReadFile(n.paths.nodePassword())
	if err == nil {
		return strings.TrimSpace(string(data)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	password := make([]byte, 16)
	_, _ = rand.Read(password) // it never fails
	text := hex.EncodeToString(password)
	return text, writeFile(n.paths.nodePassword(), []byte(text+"\n"), 0o600)
}
