package bundle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"k3s9p/internal/record"
)

// launcher writes a launcher with two files and a link in it.
func launcher(t *testing.T, edit func(*record.Build)) string {
	t.Helper()
	files := map[string][]byte{"bin/kube": bytes.Repeat([]byte("kube"), 10<<20), "cni/bridge": []byte("#!/bin/sh\n")}
	build := record.Build{Distribution: "test", Version: "v1"}
	for _, name := range []string{"bin/kube", "cni/bridge"} {
		build.Outputs = append(build.Outputs, record.Output{Path: name, Size: int64(len(files[name])), SHA256: fmt.Sprintf("%x", sha256.Sum256(files[name]))})
	}
	build.Outputs = append(build.Outputs, record.Output{Path: "bin/kubelet", Link: "kube"})
	if edit != nil {
		edit(&build)
	}
	var out bytes.Buffer
	err := Attach(&out, strings.NewReader("ELF"), build, func(output record.Output) (io.ReadCloser, error) {
		var frames bytes.Buffer
		data := files[output.Path]
		err := Compress(&frames, bytes.NewReader(data), int64(len(data)))
		return io.NopCloser(&frames), err
	})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "k3s9p")
	if err := os.WriteFile(name, out.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRoundTrip(t *testing.T) {
	name := launcher(t, nil)
	b, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	build, err := b.Build()
	if err != nil || build.Version != "v1" || len(build.Outputs) != 3 {
		t.Errorf("the record is %+v, %v", build, err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := b.Unpack(dir); err != nil {
		t.Fatal(err)
	}
	if link, err := os.Readlink(filepath.Join(dir, "bin", "kubelet")); link != "kube" {
		t.Errorf("the link names %q (%v)", link, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "bin", "kubelet")); err != nil || info.Size() != 40<<20 || info.Mode().Perm() != 0o755 {
		t.Errorf("kubelet is %v (%v)", info, err)
	}
	if err := b.Unpack(dir); !errors.Is(err, os.ErrExist) {
		t.Errorf("unpacking over a directory gives %v", err)
	}

	// The same input gives the same bytes.
	first, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(launcher(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sha256.Sum256(first), sha256.Sum256(second)); diff != "" {
		t.Errorf("two bundles of the same files differ:\n%s", diff)
	}
}

// A damaged bundle gives an error and no directory, wherever the damage is.
func TestDamage(t *testing.T) {
	whole, err := os.ReadFile(launcher(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	for what, damaged := range map[string][]byte{
		"a byte of a file":        flip(whole, 2000),
		"a byte of the manifest":  flip(whole, 300),
		"a byte of the digest":    flip(whole, len(whole)-1),
		"a byte of the length":    flip(whole, len(whole)-sha256.Size-4),
		"the end":                 whole[:len(whole)-10],
		"the middle":              append(append([]byte{}, whole[:1000]...), whole[1500:]...),
		"all but the launcher":    whole[:3],
		"nothing, but no archive": []byte(strings.Repeat("x", 1000)),
	} {
		name := filepath.Join(t.TempDir(), "k3s9p")
		if err := os.WriteFile(name, damaged, 0o755); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "new")
		b, err := Open(name)
		if err == nil {
			err = b.Unpack(dir)
			b.Close()
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoBundle) {
			t.Errorf("%s: got %v", what, err)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); len(left)+hidden(dir) != 0 {
			t.Errorf("%s: left %v", what, left)
		}
	}
}

func TestFileOutsideOfTheFolder(t *testing.T) {
	for what, edit := range map[string]func(*record.Build){
		"a path": func(b *record.Build) { b.Outputs[2].Path = "../kubelet" },
		"a link": func(b *record.Build) { b.Outputs[2].Link = "../../etc/passwd" },
	} {
		b, err := Open(launcher(t, edit))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Unpack(filepath.Join(t.TempDir(), "new")); err == nil || !strings.Contains(err.Error(), "outside of its directory") {
			t.Errorf("%s outside gives %v", what, err)
		}
		b.Close()
	}
}

func flip(data []byte, at int) []byte {
	damaged := bytes.Clone(data)
	damaged[at] ^= 0x40
	return damaged
}

func hidden(dir string) int {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".unpack-*"))
	return len(left)
}

func TestRelease(t *testing.T) {
	name := launcher(t, nil)
	b, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var released bytes.Buffer
	build, err := b.WriteRelease(&released, "v0.1.0")
	if err != nil || build.Release != "v0.1.0" {
		t.Fatalf("the record is %+v, %v", build, err)
	}
	// The same as if it had been packed so.
	packed, err := os.ReadFile(launcher(t, func(build *record.Build) { build.Release = "v0.1.0" }))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(released.Bytes(), packed) {
		t.Error("a release differs from a launcher that was packed with the same record")
	}
	file := filepath.Join(t.TempDir(), "k3s9p")
	if err := os.WriteFile(file, released.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	again, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Unpack(filepath.Join(t.TempDir(), "new")); err != nil {
		t.Error(err)
	}
	if _, err := again.WriteRelease(io.Discard, "v0.2.0"); err == nil {
		t.Error("a release was made of a release")
	}
}
