package release

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"k3s9p/internal/bundle"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
)

// dist is what the builder would have made: the launcher of this repository, with one
// program in it, of a set with one patch.
var dist = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "k3s9p-dist-")
	if err != nil {
		return "", err
	}
	removeAtEnd = append(removeAtEnd, dir)
	web := filepath.Join(dir, "dist", "bin", "web")
	head := filepath.Join(dir, "launcher")
	for file, pkg := range map[string]string{web: "k3s9p/test/web", head: "k3s9p/cmd/k3s9p"} {
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", file, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return string(out), err
		}
	}
	sum, err := sumFile(web)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(web)
	if err != nil {
		return "", err
	}
	build := record.Build{
		Distribution: "test", Version: "v1.0.0+k3s9p.0123456789ab",
		Toolchain: record.Toolchain{Go: runtime.Version(), Platform: "linux/" + runtime.GOARCH},
		Sets: []record.Set{{Name: "web", Version: "v1.0.0", Flags: []string{"-trimpath"},
			Patches: []record.Patch{{Module: "example.com/lib", Version: "v1.0.0", Name: "0001-lib.patch", Digest: sum, Description: "lib: greet"}}}},
		Outputs: []record.Output{{Path: "bin/web", Size: info.Size(), SHA256: sum}},
	}
	launcher, err := os.Open(head)
	if err != nil {
		return "", err
	}
	defer launcher.Close()
	var packed bytes.Buffer
	err = bundle.Attach(&packed, launcher, build, func(record.Output) (io.ReadCloser, error) {
		data, err := os.ReadFile(web)
		var frames bytes.Buffer
		if err == nil {
			err = bundle.Compress(&frames, bytes.NewReader(data), int64(len(data)))
		}
		return io.NopCloser(&frames), err
	})
	if err != nil {
		return "", err
	}
	build.Outputs = append(build.Outputs, record.Output{Path: launcherPath})
	manifest, err := json.Marshal(build)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "dist", launcherPath), packed.Bytes(), 0o755); err != nil {
		return "", err
	}
	return filepath.Join(dir, "dist"), os.WriteFile(filepath.Join(dir, "dist", "build.json"), manifest, 0o644)
})

var removeAtEnd []string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range removeAtEnd {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// repository is a clone in which releases are made, with the maintainer's key.
type repository struct {
	t    *testing.T
	root string
	env  map[string]string
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	r := &repository{t: t, root: t.TempDir(), env: make(map[string]string)}
	r.write("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-11-25\n\n## [1.2.2] - 2026-10-25\n")
	r.write("go.mod", "module k3s9p\n\ngo 1.26\n")
	r.write(".gitignore", "/dist/\n/.work/\n")
	file, line := newKey(t)
	r.env[keyVariable] = file
	r.write(signersName, "# who may\n\n"+line+"\n")
	r.git("init", "--quiet")
	r.commit()
	return r
}

// newKey makes the key of a maintainer, and the line that lets it sign.
func newKey(t *testing.T) (file, line string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return file, signerLine(authorized(key))
}

func (r *repository) write(name, text string) {
	r.t.Helper()
	file := filepath.Join(r.root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repository) git(args ...string) {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=2026-11-25T12:00:00Z", "GIT_COMMITTER_DATE=2026-11-25T12:00:00Z")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func (r *repository) commit() {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "--quiet", "--allow-empty", "-m", "a change")
}

func (r *repository) getenv(name string) string { return r.env[name] }

func (r *repository) maker() *Maker {
	return &Maker{Root: r.root, Progress: progress.NewPlain(io.Discard), Getenv: r.getenv}
}

// release makes one of the same dist/, and returns its directory.
func (r *repository) release() string {
	r.t.Helper()
	from, err := dist()
	if err != nil {
		r.t.Fatal(err, from)
	}
	if err := os.CopyFS(filepath.Join(r.root, "dist"), os.DirFS(from)); err != nil && !errors.Is(err, os.ErrExist) {
		r.t.Fatal(err)
	}
	m := r.maker()
	if err := m.Check(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	if err := m.Make(context.Background(), filepath.Join(r.root, "dist")); err != nil {
		r.t.Fatal(err)
	}
	return filepath.Join(r.root, Dir)
}

func (r *repository) verify(place string) (Verified, error) {
	v := Verifier{Root: r.root, Progress: progress.NewPlain(io.Discard), Getenv: r.getenv}
	return v.Verify(context.Background(), place)
}

func TestVerify(t *testing.T) {
	r := newRepository(t)
	good := r.release()
	verified, err := r.verify(good)
	if err != nil || verified.Version != "v1.2.3" || !verified.Signed || len(verified.Commit) != 40 {
		t.Fatalf("a good release is %+v, %v", verified, err)
	}
	program := programName(runtime.GOARCH)
	for _, bad := range []struct {
		name string
		// change makes the release another one; sealed ones have sums and a signature
		// again, as if the maintainer had made them so.
		change func(dir string) error
		sealed bool
		want   string
	}{
		{"a file too many", add("README.md"), true, "README.md does not belong to a release"},
		{"a file missing", drop(imagesName), true, imagesName + " is missing"},
		{"an architecture without its SBOM", add("k3s9p-linux-mips"), true, "k3s9p-linux-mips.spdx.json is missing"},
		{"a changed program", replace(program, "k3s9p", "k3s8p"), false, program + " has the SHA-256"},
		{"a changed file", replace(imagesName, "", "evil\n"), false, imagesName + " has the SHA-256"},
		{"changed sums", replace(sumsName, "", strings.Repeat("0", 64)+"  evil\n"), false, "evil has the SHA-256"},
		{"a damaged program", replace(program, "k3s9p-bundle-v1", "k3s9p-bundle-v2"), true, "carries no distribution"},
		{"a module too few", replace(sbomName(runtime.GOARCH), "github.com/klauspost/compress", "example.com/other"), true, "github.com/klauspost/compress"},
		{"another program in the SBOM", replace(sbomName(runtime.GOARCH), `"checksumValue": "`, `"checksumValue": "0`), true, "it does not have"},
		{"an SBOM that is none", replace(sbomName(runtime.GOARCH), `"SPDX-2.3"`, `"SPDX-9"`), true, "unsupported SDPX version"},
		{"a licence that is none", replace(sbomName(runtime.GOARCH), `"licenseConcluded": "MIT"`, `"licenseConcluded": "Mine"`), true, "which SPDX does not know"},
		{"another commit", replace(provenanceName(runtime.GOARCH), `"gitCommit"`, `"gitBlob"`), true, "it names no commit"},
		{"other flags", replace(provenanceName(runtime.GOARCH), `"-trimpath"`, `"-race"`), true, "its internal parameters are"},
		{"another patch", replace(provenanceName(runtime.GOARCH), `0001-lib.patch`, `0002-lib.patch`), true, "its sources lack"},
		{"another builder", replace(provenanceName(runtime.GOARCH), builderID, "urn:other"), true, "its builder"},
		{"another script", replace(installerName, "release='v1.2.3'", "release='v9'"), true, "it does not have the line"},
		{"a licence missing", replace(licencesName, "github.com/spf13/cobra v", "github.com/other/cobra v"), true, "it has nothing about github.com/spf13/cobra"},
		{"an image of another program", otherImage, true, "and the program"},
	} {
		t.Run(bad.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "release")
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			if err := bad.change(dir); err != nil {
				t.Fatal(err)
			}
			if bad.sealed {
				reseal(t, r, dir)
			}
			if _, err := r.verify(dir); err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("the error is %v, not about %q", err, bad.want)
			}
		})
	}
	t.Run("from a server", func(t *testing.T) { testDownload(t, r, good) })
	t.Run("the same bytes", func(t *testing.T) { testReproducible(t, r, good) })
	t.Run("signed by another key", func(t *testing.T) { testSignature(t, r, good) })
}

func add(name string) func(string) error {
	return func(dir string) error { return write(dir, name, []byte("more\n")) }
}

func drop(name string) func(string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

// replace changes all of a text in a file; an empty one is appended.
func replace(name, old, text string) func(string) error {
	return func(dir string) error {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if old == "" {
			data = append(data, text...)
		} else if bytes.Contains(data, []byte(old)) {
			data = bytes.ReplaceAll(data, []byte(old), []byte(text))
		} else {
			return os.ErrNotExist
		}
		return write(dir, name, data)
	}
}

func otherImage(dir string) error {
	other := filepath.Join(filepath.Dir(dir), "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\n"), 0o755); err != nil {
		return err
	}
	return writeImage(filepath.Join(dir, imageName(runtime.GOARCH)), other, Source{Version: "v1.2.3"}, runtime.GOARCH)
}

// reseal writes sums and signature again, and the digests in the provenance.
func reseal(t *testing.T, r *repository, dir string) {
	t.Helper()
	image, err := sumFile(filepath.Join(dir, imageName(runtime.GOARCH)))
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		t.Fatal(err)
	}
	before, err := parseSums(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := replace(provenanceName(runtime.GOARCH), before[imageName(runtime.GOARCH)], image)(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{sumsName, signatureName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	m := r.maker()
	if err := m.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := m.seal(dir); err != nil && !strings.Contains(err.Error(), "the files are not those of a release") {
		t.Fatal(err)
	}
}

func testSignature(t *testing.T, r *repository, dir string) {
	if err := os.Remove(filepath.Join(dir, signatureName)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.verify(dir); err == nil || !strings.Contains(err.Error(), "the release is not signed") {
		t.Errorf("without its signature: %v", err)
	}

	// Somebody else makes and signs the same release.
	thief := newRepository(t)
	thiefs := thief.release()
	if _, err := thief.verify(thiefs); err != nil {
		t.Errorf("the other one's own release: %v", err)
	}
	if _, err := r.verify(thiefs); err == nil || !strings.Contains(err.Error(), "was made with another key") {
		t.Errorf("made by another key: %v", err)
	}
	// Unless the user trusts that key.
	r.env[signersVariable] = filepath.Join(thief.root, signersName)
	if _, err := r.verify(thiefs); err != nil {
		t.Errorf("made by another key that is trusted: %v", err)
	}

	// ssh-keygen agrees.
	content, err := os.Open(filepath.Join(thiefs, sumsName))
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	keygen := exec.Command("ssh-keygen", "-Y", "verify", "-f", filepath.Join(thief.root, signersName), "-I", signer, "-n", namespace, "-s", filepath.Join(thiefs, signatureName))
	keygen.Stdin = content
	if out, err := keygen.CombinedOutput(); err != nil {
		t.Errorf("ssh-keygen: %v\n%s", err, out)
	}
}

func TestUnsigned(t *testing.T) {
	r := newRepository(t)
	r.env[keyVariable] = ""
	r.write(signersName, "# nobody yet\n")
	r.commit()
	verified, err := r.verify(r.release())
	if err != nil || verified.Signed {
		t.Errorf("a release without a key, for a list without keys, is %+v, %v", verified, err)
	}
	if !strings.Contains(verified.String(), "NOT SIGNED") {
		t.Errorf("it is said to be %s", verified)
	}
}

// The same commit gives the same bytes in another directory, and twice in the same one
// nothing is made.
func testReproducible(t *testing.T, r *repository, first string) {
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	r.release()
	after, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("what was there was made again")
	}
	clone := &repository{t: t, root: filepath.Join(t.TempDir(), "a", "clone"), env: r.env}
	if out, err := exec.Command("git", "clone", "--quiet", r.root, clone.root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	second := clone.release()
	one, err := os.ReadFile(filepath.Join(first, sumsName))
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(filepath.Join(second, sumsName))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Errorf("one is\n%s\nand the other\n%s", one, two)
	}
}

func testDownload(t *testing.T, r *repository, good string) {
	files := http.FileServer(http.Dir(good))
	server := httptest.NewServer(files)
	defer server.Close()
	if _, err := r.verify(server.URL); err != nil {
		t.Errorf("from %s: %v", server.URL, err)
	}
	if _, err := r.verify("http://example.com/v1.2.3"); err == nil || !strings.Contains(err.Error(), "is not https") {
		t.Errorf("by http: %v", err)
	}
	away := httptest.NewServer(http.RedirectHandler("http://example.com/", http.StatusFound))
	defer away.Close()
	if _, err := r.verify(away.URL); err == nil || !strings.Contains(err.Error(), "is not https") {
		t.Errorf("redirected to http: %v", err)
	}
	partly := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if strings.HasSuffix(request.URL.Path, licencesName) {
			http.NotFound(w, request)
			return
		}
		files.ServeHTTP(w, request)
	}))
	defer partly.Close()
	if _, err := r.verify(partly.URL); err == nil || !strings.Contains(err.Error(), "licences.txt: there is no such file") {
		t.Errorf("with a file missing: %v", err)
	}
}

func TestParseSums(t *testing.T) {
	sum := strings.Repeat("0", 64)
	for _, bad := range []string{"", "x  file\n", sum + " file\n", sum + "  ../file\n", sum + "  /etc/passwd\n", sum + "  ..\n", sum + "  a\n" + sum + "  a\n", sum + "  \n"} {
		if sums, err := parseSums([]byte(bad)); err == nil {
			t.Errorf("%q gives %v", bad, sums)
		}
	}
}
