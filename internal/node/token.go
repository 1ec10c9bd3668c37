package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	bootstrap "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"

	"k3s9p/internal/hint"
)

// joinToken is what a machine shows to join a cluster, and recognizes the cluster by: a
// bootstrap token (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/)
// and the hash of the cluster's authority, in the form that k3s has for both.
type joinToken struct {
	authority string // SHA-256 of its public key (RFC 7469, 2.4), as kubeadm's --discovery-token-ca-cert-hash has it
	bootstrap string // ID.SECRET
}

var joinTokenForm = regexp.MustCompile(`^K10([0-9a-f]{64})::([a-z0-9]{6}\.[a-z0-9]{16})$`)

func parseToken(text string) (joinToken, error) {
	if text == "" {
		return joinToken{}, hint.Add(errors.New("there is no token to join with"), "--token TOKEN, or K3S9P_TOKEN in the environment: k3s9p token create on the server prints one")
	}
	parts := joinTokenForm.FindStringSubmatch(text)
	if parts == nil {
		return joinToken{}, hint.Add(errors.New("the token has not the form of one: K10, 64 hexadecimal digits, ::, and a bootstrap token"), "k3s9p token create on the server prints one: copy all of it")
	}
	return joinToken{parts[1], parts[2]}, nil
}

func (t joinToken) String() string { return "K10" + t.authority + "::" + t.bootstrap }

// id is the part that is no secret.
func (t joinToken) id() string { return t.bootstrap[:bootstrap.BootstrapTokenIDBytes] }

// hashOf is the hash of an authority.
func hashOf(authority []byte) (string, error) {
	block, _ := pem.Decode(authority)
	if block == nil {
		return "", errors.New("the cluster's authority is no certificate in PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("the cluster's authority: %w", err)
	}
	sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:]), nil
}

// admission is how other machines become nodes of a cluster, which differs between
// distributions.
type admission struct {
	// admin and authority are the files of the kubeconfig of who makes tokens, and of the
	// authority of the server.
	admin, authority func(Paths) string
	// hash is that of the authority in a token.
	hash func(authority []byte) (string, error)
	// group is that of who has a token.
	group string
	// admit makes a bootstrap token, ID.SECRET, with all that a node is allowed with it.
	admit func(ctx context.Context, p Paths, state State, ttl time.Duration, description string) (string, error)
	// ask asks a server what it tells everybody.
	ask func(ctx context.Context, server string) (greeting, error)
}

// kubeadmAdmission is that of kubeadm.
func kubeadmAdmission() admission {
	return admission{
		admin:     func(p Paths) string { return p.conf("super-admin") },
		authority: func(p Paths) string { return p.pkiFile("ca.crt") },
		hash:      hashOf,
		group:     kubeadmGroup,
		admit:     admitByKubeadm,
		ask:       clusterInfo,
	}
}

const kubeadmGroup = "system:bootstrappers:kubeadm:default-node-token"

// DefaultTokenTTL is how long a token is valid, as with kubeadm.
const DefaultTokenTTL = 24 * time.Hour

// Token is one that machines can join with.
type Token struct {
	ID          string    `json:"id"`
	Expires     time.Time `json:"expires,omitzero"` // zero is never
	Description string    `json:"description,omitempty"`
	// Token is all of it, and Server the URL that belongs to it. Only a new token has them.
	Token  string `json:"token,omitempty"`
	Server string `json:"server,omitempty"`
}

// CreateToken makes a token of the cluster that runs here. A ttl of 0 is one that does
// not expire.
func CreateToken(ctx context.Context, dataDir string, ttl time.Duration, description string) (Token, error) {
	if ttl < 0 || ttl > 0 && ttl < time.Second {
		return Token{}, hint.Add(fmt.Errorf("--ttl %v is no time in which a node could join", ttl), "--ttl %v, or --ttl 0 for a token that does not expire", DefaultTokenTTL)
	}
	p, state, client, err := controlPlaneOf(dataDir)
	if err != nil {
		return Token{}, err
	}
	if state.Address == "" {
		return Token{}, hint.Add(errors.New("no other machine reaches this one: it has no default route"), "k3s9p down; k3s9p up --advertise-address ADDRESS names the address that the others reach it at")
	}
	if err := awaitSettings(ctx, client); err != nil {
		return Token{}, err
	}
	admission := state.Cluster.distribution().admission
	authority, err := os.ReadFile(admission.authority(p))
	if err != nil {
		return Token{}, fmt.Errorf("read the authority of the cluster: %w", err)
	}
	var t joinToken
	if t.authority, err = admission.hash(authority); err != nil {
		return Token{}, err
	}
	if t.bootstrap, err = admission.admit(ctx, p, state, ttl, cmp.Or(description, "k3s9p token create")); err != nil {
		return Token{}, err
	}
	made := Token{ID: t.id(), Description: description, Token: t.String(), Server: fmt.Sprintf("https://%s:%d", state.Address, port)}
	if ttl > 0 {
		made.Expires = time.Now().Add(ttl).UTC().Truncate(time.Second)
	}
	return made, nil
}

// awaitSettings waits for what the server writes a moment after it has come up.
func awaitSettings(ctx context.Context, client *client) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := client.get(ctx, settingsPath, nil)
		if err == nil {
			return nil
		}
		if !answered(err, http.StatusNotFound) || time.Now().After(deadline) {
			return hint.Add(fmt.Errorf("the cluster says nothing to nodes that join: %w", err), "an older k3s9p may have brought it up: k3s9p down, k3s9p up; k3s9p status names a manifest that is not applied")
		}
	}
}

// admitByKubeadm lets kubeadm make one of a secret of its own.
func admitByKubeadm(ctx context.Context, p Paths, state State, ttl time.Duration, description string) (string, error) {
	token, err := bootstraputil.GenerateBootstrapToken()
	if err != nil {
		return "", err
	}
	config, err := kubeadmConfig(p, *state.Cluster, state.Version, map[string]any{
		"token": token, "ttl": ttl.String(), "description": description,
		"usages": []string{"signing", "authentication"}, "groups": []string{kubeadmGroup},
	})
	if err != nil {
		return "", err
	}
	program, err := p.Program("kubeadm")
	if err != nil {
		return "", err
	}
	file, err := os.CreateTemp(p.temporary(), "token-")
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name())
	if _, err := file.Write(config); err != nil {
		return "", err
	}
	if err := file.Close(); err != nil {
		return "", err
	}
	return token, kubeadm(ctx, program, "init", "phase", "bootstrap-token", "--skip-token-print", "--config="+file.Name(), "--kubeconfig="+p.conf("super-admin"))
}

const secretsPath = "/api/v1/namespaces/kube-system/secrets"

// Tokens are those of the cluster that runs here, the one that expires first in front.
func Tokens(ctx context.Context, dataDir string) ([]Token, error) {
	_, _, client, err := controlPlaneOf(dataDir)
	if err != nil {
		return nil, err
	}
	var secrets corev1.SecretList
	if err := client.get(ctx, secretsPath+"?fieldSelector="+url.QueryEscape("type="+string(bootstrap.SecretTypeBootstrapToken)), &secrets); err != nil {
		return nil, err
	}
	tokens := []Token{}
	for _, s := range secrets.Items {
		t := Token{ID: string(s.Data[bootstrap.BootstrapTokenIDKey]), Description: string(s.Data[bootstrap.BootstrapTokenDescriptionKey])}
		t.Expires, _ = time.Parse(time.RFC3339, string(s.Data[bootstrap.BootstrapTokenExpirationKey]))
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b Token) int {
		if a.Expires.IsZero() != b.Expires.IsZero() {
			return -cmp.Compare(a.Expires.Unix(), b.Expires.Unix())
		}
		return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.ID, b.ID))
	})
	return tokens, nil
}

// DeleteToken deletes a token, named by its id or by all of it. Nodes that have joined
// with it stay.
func DeleteToken(ctx context.Context, dataDir, name string) error {
	if t, err := parseToken(name); err == nil {
		name = t.id()
	}
	if !bootstraputil.IsValidBootstrapTokenID(name) {
		return hint.Add(fmt.Errorf("%q is neither a token nor the id of one", name), "k3s9p token list has the ids")
	}
	_, _, client, err := controlPlaneOf(dataDir)
	if err != nil {
		return err
	}
	_, err = client.do(ctx, http.MethodDelete, secretsPath+"/"+bootstraputil.BootstrapTokenSecretName(name), nil)
	if answered(err, http.StatusNotFound) {
		return hint.Add(fmt.Errorf("there is no token %s", name), "k3s9p token list has the ids; one that has expired is gone by itself")
	}
	return err
}

// controlPlaneOf is the cluster that runs here, as its administrator. It is an error if
// nothing runs, and if other nodes could not join.
func controlPlaneOf(dataDir string) (Paths, State, *client, error) {
	p := Paths{dataDir}
	state, err := Status(dataDir)
	switch {
	case err != nil:
	case state.Phase != Running:
		err = hint.Add(fmt.Errorf("no cluster runs with its data in %s", dataDir), "k3s9p up")
	case state.Cluster.Joined():
		err = hint.Add(fmt.Errorf("this node has joined the cluster of %s", state.Cluster.Server), "tokens are made, listed and deleted on that server")
	case state.Rootless:
		err = hint.Add(errors.New("this node is in namespaces of its own, where no other node reaches its pods"), "a server that others join needs CAP_SYS_ADMIN and CAP_NET_ADMIN")
	}
	if err != nil {
		return p, state, nil, err
	}
	client, err := newClient(state.Cluster.distribution().admission.admin(p))
	return p, state, client, err
}
