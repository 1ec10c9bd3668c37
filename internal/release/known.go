package release

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// memory is where is noted down what the release in dist/release/ was made of.
const memory = ".work/release"

// inputs is the digest of all that a release depends on: what was built, this program,
// and what the maintainer has said.
func (m *Maker) inputs(dists []string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	files := []string{self, m.report()}
	for _, dist := range dists {
		files = append(files, filepath.Join(dist, "build.json"), filepath.Join(dist, launcherPath))
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%+v\n%s\n%s\n", m.source, m.Getenv(urlVariable), m.signers)
	if m.key != nil {
		fmt.Fprintln(hash, ssh.FingerprintSHA256(m.key.PublicKey()))
	}
	for _, file := range files {
		sum, err := sumFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		fmt.Fprintln(hash, sum)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), nil
}

// made reports whether a directory has the release that these inputs give.
func (m *Maker) made(dir, inputs string) bool {
	noted, err := os.ReadFile(filepath.Join(m.Root, memory))
	if err != nil {
		return false
	}
	names, err := list(dir)
	if err != nil || exact(names) != nil {
		return false
	}
	sums, err := checkSums(dir, names)
	return err == nil && string(noted) == note(inputs, sums)
}

// remember notes down what the release in a directory was made of.
func (m *Maker) remember(dir, inputs string) error {
	data, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		return err
	}
	sums, err := parseSums(data)
	if err != nil {
		return err
	}
	name := filepath.Join(m.Root, memory)
	return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(note(inputs, sums)), 0o644))
}

func note(inputs string, sums Sums) string {
	return fmt.Sprintf("%s\n%x\n", inputs, sha256.Sum256([]byte(sums.String())))
}
