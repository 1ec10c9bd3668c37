package release

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	for _, c := range []struct{ changelog, want string }{
		{"# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n## [0.1.0] - 2026-11-25\n", "v0.2.0"},
		{"## [1.0.0-rc.1] - 2026-11-25\n", "v1.0.0-rc.1"},
		{"## [Unreleased]\n", ""},
		{"## 0.1.0\n", ""},
		{"## [0.1] - 2026-11-25\n", ""},
		{"", ""},
	} {
		got, err := Version([]byte(c.changelog))
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q says %q, %v; not %q", c.changelog, got, err, c.want)
		}
	}
}

// The repository's own says one.
func TestChangelog(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", changelogName))
	if err != nil {
		t.Fatal(err)
	}
	if version, err := Version(data); err != nil {
		t.Error(err)
	} else {
		t.Log(version)
	}
}

func TestSource(t *testing.T) {
	r := newRepository(t)
	ctx := context.Background()
	refused := func(when, want string) {
		t.Helper()
		if err := r.maker().Check(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v, not about %q", when, err, want)
		}
	}
	if err := r.maker().Check(ctx); err != nil {
		t.Errorf("a clean tree without a tag: %v", err)
	}
	r.git("tag", "v1.2.2")
	refused("a tag that is not the version", "has the tag v1.2.2, and CHANGELOG.md says v1.2.3")
	r.git("tag", "v1.2.3")
	if err := r.maker().Check(ctx); err != nil {
		t.Errorf("a clean tree with its tag: %v", err)
	}
	r.commit()
	refused("a version that is released", "v1.2.3 is the tag of another commit")
	r.git("tag", "-d", "v1.2.3")
	r.write("new.go", "package new\n")
	r.write("CHANGELOG.md", "## [1.2.3] - 2026-11-26\n")
	refused("a dirty tree", " M CHANGELOG.md\n?? new.go\n")

	m := r.maker()
	if err := m.CheckSnapshot(ctx); err != nil {
		t.Fatal(err)
	}
	if s := m.source; !s.Dirty || !s.Snapshot() || s.Version != "v1.2.3-snapshot."+s.Commit[:12]+".dirty" {
		t.Errorf("a snapshot of a dirty tree is %+v", s)
	}
	r.commit()
	if err := m.CheckSnapshot(ctx); err != nil || m.source.Dirty || strings.Contains(m.source.Version, "dirty") {
		t.Errorf("a snapshot of a clean tree is %+v, %v", m.source, err)
	}
	r.git("rm", "--quiet", "CHANGELOG.md")
	r.commit()
	refused("no changelog", "look for the version of the release")
	if err := os.RemoveAll(filepath.Join(r.root, ".git")); err != nil {
		t.Fatal(err)
	}
	r.write("CHANGELOG.md", "## [1.2.3] - 2026-11-26\n")
	refused("no repository", "work in a clone of the repository")
}

func TestKey(t *testing.T) {
	r := newRepository(t)
	for _, c := range []struct{ name, file, want string }{
		{"no file", "/nonexistent", "read the key that signs the release: open /nonexistent"},
		{"no key", filepath.Join(r.root, "CHANGELOG.md"), "ssh-keygen -t ed25519 -f FILE makes one"},
		{"a key that nobody accepts", keyFile(t), "commit this line in docs/allowed_signers: k3s9p namespaces=\"file\" ssh-ed25519 AAAA"},
		{"a key with a passphrase", lockedKey(t, "secret"), "has a passphrase"},
	} {
		r.env[keyVariable] = c.file
		if err := r.maker().Check(context.Background()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, not about %q", c.name, err, c.want)
		}
	}
	// With the passphrase, and on the list, it signs.
	public, err := os.ReadFile(r.env[keyVariable] + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	r.write(signersName, signerLine(strings.TrimSpace(string(public)))+"\n")
	r.commit()
	r.env[passphraseVariable] = "secret"
	if err := r.maker().Check(context.Background()); err != nil {
		t.Error(err)
	}
	r.env[passphraseVariable] = "wrong"
	if err := r.maker().Check(context.Background()); err == nil {
		t.Error("a wrong passphrase opens the key")
	}
}

// What ssh-keygen has signed, with a key that this program cannot read, is signed as well.
func TestSignedByHand(t *testing.T) {
	file := lockedKey(t, "")
	public, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	signers, err := ReadSigners([]byte(signerLine(strings.TrimSpace(string(public)))))
	if err != nil {
		t.Fatal(err)
	}
	sums := filepath.Join(t.TempDir(), sumsName)
	content := []byte(strings.Repeat("0", 64) + "  " + imagesName + "\n")
	if err := os.WriteFile(sums, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-Y", "sign", "-q", "-f", file, "-n", namespace, sums).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	signature, err := os.ReadFile(filepath.Join(filepath.Dir(sums), signatureName))
	if err != nil {
		t.Fatal(err)
	}
	if err := verifySignature(content, signature, signers); err != nil {
		t.Error(err)
	}
	if err := verifySignature(append(content, '\n'), signature, signers); err == nil || !strings.Contains(err.Error(), "does not belong to") {
		t.Errorf("of another content: %v", err)
	}
}

func keyFile(t *testing.T) string {
	file, _ := newKey(t)
	return file
}

// lockedKey makes a key as a maintainer does.
func lockedKey(t *testing.T, passphrase string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	return file
}

func TestSigners(t *testing.T) {
	_, line := newKey(t)
	for text, want := range map[string]int{
		"":                                    0,
		"# a comment\n\n":                     0,
		line + "\n":                           1,
		"# a comment\n" + line + " somebody":  1,
		"other" + line:                        -1,
		"k3s9p ssh-ed25519 nonsense":          -1,
		strings.TrimPrefix(line, signer+" "):  -1,
		line + "\n" + line + "\nk3s9p broken": -1,
	} {
		signers, err := ReadSigners([]byte(text))
		if (err != nil) != (want < 0) || err == nil && len(signers) != want {
			t.Errorf("%q gives %d keys, %v", text, len(signers), err)
		}
		if want == 1 && signers.String() != line+"\n" {
			t.Errorf("the list is written as %q", signers)
		}
	}
}
