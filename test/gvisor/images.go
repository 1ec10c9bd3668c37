package gvisor

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"k3s9p/internal/proof/contract"
)

// LoadWebImage is the image that pods run.
func LoadWebImage(t *testing.T) v1.Image {
	t.Helper()
	image, err := tarball.ImageFromPath(Program(contract.WebImage), nil)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// WithFileOf adds a file to an image that belongs to a user.
func WithFileOf(t *testing.T, image v1.Image, user int) v1.Image {
	t.Helper()
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Uid: user, Gid: user})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err == nil {
		image, err = mutate.AppendLayers(image, layer)
	}
	if err != nil {
		t.Fatal(err)
	}
	return image
}
