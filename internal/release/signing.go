package release

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"k3s9p/internal/hint"
)

// Releases are signed with an SSH key: ssh-keygen(1), which verifies the signature by
// hand and in install.sh, is nearly everywhere, unlike minisign and cosign, and a
// maintainer has a key of that kind, with a passphrase or on a card.

// signersName lists the keys that may sign a release, in the repository, in the form
// that ssh-keygen -Y verify reads (ssh-keygen(1), ALLOWED SIGNERS).
const signersName = "docs/allowed_signers"

// signer is whom the list names, and namespace what ssh-keygen calls files.
const (
	signer    = "k3s9p"
	namespace = "file"
)

// The variables with the maintainer's key: a file, and what opens it.
const (
	keyVariable        = "K3S9P_RELEASE_KEY"
	passphraseVariable = "K3S9P_RELEASE_KEY_PASSPHRASE"
)

// keyOf reads the key that the environment names, or returns nil.
func keyOf(getenv func(string) string) (ssh.Signer, error) {
	file := getenv(keyVariable)
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("read the key that signs the release: %w", err), "%s names the file of a private SSH key", keyVariable)
	}
	var key ssh.Signer
	if passphrase := getenv(passphraseVariable); passphrase != "" {
		key, err = ssh.ParsePrivateKeyWithPassphrase(data, []byte(passphrase))
	} else {
		key, err = ssh.ParsePrivateKey(data)
	}
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, hint.Add(fmt.Errorf("the key %s has a passphrase", file), "%s=…", passphraseVariable)
	case err != nil:
		return nil, hint.Add(fmt.Errorf("read the key %s: %w", file, err), "ssh-keygen -t ed25519 -f FILE makes one")
	}
	return key, nil
}

// Signers are the keys that may sign.
type Signers []ssh.PublicKey

// ReadSigners reads a list of allowed signers. One that names nobody is no error.
func ReadSigners(data []byte) (Signers, error) {
	var signers Signers
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		who, rest, _ := strings.Cut(line, " ")
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(rest))
		if err != nil || who != signer {
			return nil, errors.Join(fmt.Errorf("%s: %q is not of the form: %s", signersName, line, signerLine("ssh-ed25519 AAAA…")), err)
		}
		signers = append(signers, key)
	}
	return signers, nil
}

// has reports whether the key may sign.
func (s Signers) has(key ssh.PublicKey) bool {
	for _, known := range s {
		if bytes.Equal(known.Marshal(), key.Marshal()) {
			return true
		}
	}
	return false
}

// String is the list in the form that ssh-keygen reads.
func (s Signers) String() string {
	var text strings.Builder
	for _, key := range s {
		text.WriteString(signerLine(authorized(key)) + "\n")
	}
	return text.String()
}

func signerLine(key string) string {
	return fmt.Sprintf("%s namespaces=%q %s", signer, namespace, key)
}

func authorized(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// sign returns the signature of a file's content.
func sign(content []byte, key ssh.Signer, signers Signers) ([]byte, error) {
	if !signers.has(key.PublicKey()) {
		return nil, hint.Add(fmt.Errorf("the key that %s names is none of those that users accept", keyVariable),
			"commit this line in %s: %s", signersName, signerLine(authorized(key.PublicKey())))
	}
	signature, err := sshsig.Sign(bytes.NewReader(content), key, sshsig.HashSHA512, namespace)
	if err != nil {
		return nil, fmt.Errorf("sign the release: %w", err)
	}
	return sshsig.Armor(signature), nil
}

// verifySignature accepts what one of the signers has signed.
func verifySignature(content, armored []byte, signers Signers) error {
	signature, err := sshsig.Unarmor(armored)
	if err != nil {
		return fmt.Errorf("read %s: %w", signatureName, err)
	}
	if !signers.has(signature.PublicKey) {
		return hint.Add(fmt.Errorf("%s was made with another key than those in %s: %s", signatureName, signersName, ssh.FingerprintSHA256(signature.PublicKey)),
			"somebody else has made this release: do not use it")
	}
	if err := sshsig.Verify(bytes.NewReader(content), signature, signature.PublicKey, signature.HashAlgorithm, namespace); err != nil {
		return fmt.Errorf("%s does not belong to %s: %w", signatureName, sumsName, err)
	}
	return nil
}
