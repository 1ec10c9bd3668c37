package release

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/digest"
	"k3s9p/internal/hint"
)

// The files of a release that are for all architectures.
const (
	sumsName       = "SHA256SUMS"
	signatureName  = "SHA256SUMS.sig"
	installerName  = "install.sh"
	imagesName     = "images.txt"
	licencesName   = "licences.txt"
	experimentName = "experiment.md"
)

// The files of a release for one architecture, as Go calls it.
func programName(arch string) string    { return "k3s9p-linux-" + arch }
func imageName(arch string) string      { return programName(arch) + ".oci.tar" }
func sbomName(arch string) string       { return programName(arch) + ".spdx.json" }
func provenanceName(arch string) string { return programName(arch) + ".provenance.json" }

// optional are the files that a release may do without: a report that is not always
// made again, and the signature of somebody who has the key.
var optional = []string{experimentName, signatureName}

// Names are the files of a release for some architectures, sorted; those that it may do
// without are not among them.
func Names(archs []string) []string {
	names := []string{imagesName, installerName, licencesName, sumsName}
	for _, arch := range archs {
		names = append(names, programName(arch), imageName(arch), sbomName(arch), provenanceName(arch))
	}
	slices.Sort(names)
	return names
}

// architectures are those that a list of files has programs for.
func architectures(names []string) []string {
	var archs []string
	for _, name := range names {
		if arch, ok := strings.CutPrefix(name, programName("")); ok && !strings.Contains(arch, ".") {
			archs = append(archs, arch)
		}
	}
	slices.Sort(archs)
	return archs
}

// exact compares the files that are there with the set that a release is.
func exact(there []string) error {
	archs := architectures(there)
	if len(archs) == 0 {
		return fmt.Errorf("there is no %s…: this is no release", programName(""))
	}
	want := Names(archs)
	var wrong []string
	for _, name := range want {
		if !slices.Contains(there, name) {
			wrong = append(wrong, name+" is missing")
		}
	}
	for _, name := range there {
		if !slices.Contains(want, name) && !slices.Contains(optional, name) {
			wrong = append(wrong, name+" does not belong to a release")
		}
	}
	if len(wrong) > 0 {
		return hint.Add(fmt.Errorf("the files are not those of a release for %s: %s", strings.Join(archs, ", "), strings.Join(wrong, ", ")),
			"do not use them; a maintainer makes them with: go tool mage release")
	}
	return nil
}

// list names the files in a directory.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, err
}

// Sums are the SHA-256 of files in hexadecimal, by name.
type Sums map[string]string

// sumAll hashes files in a directory.
func sumAll(dir string, names []string) (Sums, error) {
	sums := make(Sums)
	for _, name := range names {
		sum, err := sumFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		sums[name] = sum
	}
	return sums, nil
}

// sumFile returns the SHA-256 of a file in hexadecimal.
func sumFile(name string) (string, error) {
	sum, _, err := digest.File(name)
	return sum, err
}

func sumOf(content io.Reader) (string, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, content); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// String is the content of a file for sha256sum --check.
func (s Sums) String() string {
	var text strings.Builder
	for _, name := range s.names() {
		fmt.Fprintf(&text, "%s  %s\n", s[name], name)
	}
	return text.String()
}

func (s Sums) names() []string {
	var names []string
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// parseSums reads what sha256sum has printed. Names with a directory in them are
// refused: somebody else may have written the list.
func parseSums(data []byte) (Sums, error) {
	sums := make(Sums)
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for scanner.Scan() {
		sum, name, found := strings.Cut(scanner.Text(), "  ")
		decoded, err := hex.DecodeString(sum)
		if !found || err != nil || len(decoded) != sha256.Size || name != filepath.Base(name) || name == "." || name == ".." || sums[name] != "" {
			return nil, fmt.Errorf("%s: %q is no line of it", sumsName, scanner.Text())
		}
		sums[name] = sum
	}
	if len(sums) == 0 {
		return nil, errors.Join(fmt.Errorf("%s is empty", sumsName), scanner.Err())
	}
	return sums, scanner.Err()
}
