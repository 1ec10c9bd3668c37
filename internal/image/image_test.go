package image

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"archive/tar"
	"io"
)

func TestSave(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("ELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	var archives [2][]byte
	for i := range archives {
		archive := filepath.Join(dir, "image.tar")
		if err := Save(archive, "k3s9p.local/pause:1", program, "arm64"); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(archive); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same program gave two different archives")
	}

	tag, err := name.NewTag("k3s9p.local/pause:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(filepath.Join(dir, "image.tar"), &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/pause"}, config.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if config.Architecture != "arm64" {
		t.Errorf("the image is for %s", config.Architecture)
	}
	layers := mutate.Extract(img)
	defer layers.Close()
	files := tar.NewReader(layers)
	header, err := files.Next()
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(files)
	if err != nil {
		t.Fatal(err)
	}
	if header.Name != "pause" || header.Mode != 0o755 || string(content) != "ELF" {
		t.Errorf("the image has %s, mode %o, %q", header.Name, header.Mode, content)
	}
}

func TestSaveRefusesABadName(t *testing.T) {
	if err := Save(filepath.Join(t.TempDir(), "image.tar"), "no tag", os.Args[0], "amd64"); err == nil {
		t.Error("a reference with a space was accepted")
	}
}
