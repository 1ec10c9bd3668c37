package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/crypto/x509roots/fallback/bundle"

	"k3s9p/internal/rmtree"
)

// programInImage is where an image has the program.
const programInImage = "usr/local/bin/k3s9p"

// imageReference is the name that the image has once it is imported.
func imageReference(version string) string { return "k3s9p.local/k3s9p:" + version }

// writeImage writes an OCI image archive (https://github.com/opencontainers/image-spec,
// image-layout.md, as a tar) with the program as its entry point. Besides the program it
// has what a node needs of a system: mount and umount, which are the program under other
// names, and the roots of certificates.
func writeImage(archive, program string, s Source, arch string) error {
	layer, err := layerOf(program, s.Date)
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config.Architecture, config.OS, config.Created = arch, "linux", v1.Time{Time: s.Date}
	config.History = []v1.History{{Created: v1.Time{Time: s.Date}, CreatedBy: "k3s9p " + s.Version}}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + programInImage, "up"},
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "k3s9p",
			"org.opencontainers.image.version":  s.Version,
			"org.opencontainers.image.revision": s.Commit,
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	return writeArchive(archive, img, s)
}

// layerOf is the root of the image. It is stored, not compressed: the program is already.
func layerOf(program string, date time.Time) (v1.Layer, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	files.Grow(len(data) + 1<<20)
	w := tar.NewWriter(&files)
	for _, file := range []struct {
		header  tar.Header
		content []byte
	}{
		{tar.Header{Name: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644}, authorities()},
		{tar.Header{Name: "root/", Mode: 0o700, Typeflag: tar.TypeDir}, nil},
		{tar.Header{Name: "run/", Mode: 0o755, Typeflag: tar.TypeDir}, nil},
		{tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil},
		{tar.Header{Name: "usr/bin/mount", Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "../local/bin/k3s9p"}, nil},
		{tar.Header{Name: "usr/bin/umount", Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "../local/bin/k3s9p"}, nil},
		{tar.Header{Name: programInImage, Mode: 0o755}, data},
		{tar.Header{Name: "var/run", Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "../run"}, nil},
	} {
		file.header.Size, file.header.ModTime, file.header.Format = int64(len(file.content)), date, tar.FormatPAX
		if err := w.WriteHeader(&file.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(file.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil },
		tarball.WithCompressionLevel(gzip.NoCompression), tarball.WithMediaType(types.OCILayer))
}

// authorities are Mozilla's root certificates, as the Go project keeps them.
func authorities() []byte {
	var all bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil { // PEM cannot say it
			_ = pem.Encode(&all, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		}
	}
	return all.Bytes()
}

// writeArchive writes an image layout as a tar, with its files in order.
func writeArchive(archive string, img v1.Image, s Source) error {
	dir, err := os.MkdirTemp(filepath.Dir(archive), ".layout-")
	if err != nil {
		return err
	}
	defer rmtree.Tree(dir)
	there, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := there.AppendImage(img, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": s.Version,
		"io.containerd.image.name":          imageReference(s.Version),
	})); err != nil {
		return err
	}
	var names []string
	err = filepath.WalkDir(dir, func(name string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for _, name := range names {
		relative, _ := filepath.Rel(dir, name)
		err = errors.Join(err, addFile(w, relative, name, s.Date))
	}
	return errors.Join(err, w.Close(), out.Close())
}

func addFile(w *tar.Writer, name, from string, date time.Time) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: info.Size(), ModTime: date, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}

// checkImage unpacks an image archive below a directory and looks whether it is of this
// version and carries the program with this sum.
func checkImage(archive, dir, version, arch, sum string) error {
	if err := unpackLayout(archive, dir); err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(manifest.Manifests) != 1 {
		return fmt.Errorf("it has %d images, not one", len(manifest.Manifests))
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return err
	}
	if err := validate.Image(img); err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	if config.Architecture != arch || config.Config.Labels["org.opencontainers.image.version"] != version {
		return fmt.Errorf("it is %s for %s, not %s for %s", config.Config.Labels["org.opencontainers.image.version"], config.Architecture, version, arch)
	}
	if entry := config.Config.Entrypoint; !slices.Equal(entry, []string{"/" + programInImage, "up"}) {
		return fmt.Errorf("its entry point is %q", entry)
	}
	return checkLayers(img, sum)
}

func checkLayers(img v1.Image, sum string) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			return err
		}
		err = checkProgram(content, sum)
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
	}
	return nil
}

// checkProgram looks for the program in a layer.
func checkProgram(layer io.Reader, sum string) error {
	files := tar.NewReader(layer)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("it has no /%s", programInImage)
		}
		if err != nil {
			return err
		}
		if header.Name != programInImage {
			continue
		}
		got, err := sumOf(files)
		if err == nil && got != sum {
			err = fmt.Errorf("its /%s has the SHA-256 %s, and the program %s", programInImage, got, sum)
		}
		return err
	}
}

// unpackLayout writes the files of an image layout, each at its place below dir.
func unpackLayout(archive, dir string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	files := tar.NewReader(file)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(header.Name) || header.Typeflag != tar.TypeReg || strings.Count(header.Name, "/") > 2 {
			return fmt.Errorf("it has a file called %q", header.Name)
		}
		target := filepath.Join(dir, path.Clean(header.Name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, files)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
