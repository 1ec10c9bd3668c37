// Package bundle packs the files of a distribution into one deterministic
// tar.zst, attaches it to the launcher, and unpacks it again.
//
// The archive is a chain of zstd frames (RFC 8878, section 3: frames may be
// concatenated), one per file, so that a file that did not change is not
// compressed again. The launcher carries it behind its own ELF image, in front
// of a trailer; embedding it with go:embed would compile and link its bytes
// again for each change of one program.
package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"k3s9p/internal/record"
)

// ManifestName is the first file of the archive: the record of the build.
const ManifestName = "build.json"

// level trades 6 % of size for 2.5 times the speed of the next better one,
// measured on the 156 MB of kube.
const level = zstd.SpeedDefault

// Pack writes the archive. The record's outputs say which files and links it
// holds; open returns the bytes of a file, and compressed those of its frame,
// which a cache may know already.
func Pack(w io.Writer, build record.Build, compressed func(record.Output) (io.ReadCloser, error)) error {
	manifest, err := Manifest(build)
	if err != nil {
		return err
	}
	if err := writeMember(w, &tar.Header{Name: ManifestName, Mode: 0o644, Size: int64(len(manifest))}, frameOf(manifest)); err != nil {
		return err
	}
	for _, output := range build.Outputs {
		if output.Link != "" {
			if err := writeMember(w, &tar.Header{Typeflag: tar.TypeSymlink, Name: output.Path, Linkname: output.Link, Mode: 0o777}, nil); err != nil {
				return err
			}
			continue
		}
		frame, err := compressed(output)
		if err != nil {
			return err
		}
		err = writeMember(w, &tar.Header{Name: output.Path, Mode: 0o755, Size: output.Size}, frame)
		if err := errors.Join(err, frame.Close()); err != nil {
			return fmt.Errorf("pack %s: %w", output.Path, err)
		}
	}
	_, err = io.Copy(w, frameOf(make([]byte, 1024))) // the two empty blocks that end a tar
	return err
}

// Manifest prints a record as build.json.
func Manifest(build record.Build) ([]byte, error) {
	data, err := json.MarshalIndent(build, "", "  ")
	return append(data, '\n'), err
}

// writeMember writes header, content and padding as frames of their own.
func writeMember(w io.Writer, header *tar.Header, content io.Reader) error {
	header.Format = tar.FormatUSTAR
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(header); err != nil {
		return err
	}
	if _, err := io.Copy(w, frameOf(head.Bytes())); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	if _, err := io.Copy(w, content); err != nil {
		return err
	}
	padding := -header.Size & 511
	_, err := io.Copy(w, frameOf(make([]byte, padding)))
	return err
}

// frameOf compresses a few bytes.
func frameOf(data []byte) io.Reader {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err) // the options are constants
	}
	return bytes.NewReader(encoder.EncodeAll(data, nil))
}

// Compress writes one frame with all of r. The bytes do not depend on the number
// of processors.
func Compress(w io.Writer, r io.Reader) error {
	encoder, err := zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(max(2, runtime.NumCPU())))
	if err != nil {
		return err
	}
	_, err = io.Copy(encoder, r)
	return errors.Join(err, encoder.Close())
}

// trailer ends a launcher that carries an archive: 16 bytes of magic, offset and
// length of the archive (64 bits each, little endian), and its SHA-256.
const (
	magic         = "k3s9p-bundle-v1\n"
	trailerLength = len(magic) + 8 + 8 + sha256.Size
)

// Attach writes the launcher, the archive and the trailer.
func Attach(w io.Writer, launcher, archive io.Reader) error {
	offset, err := io.Copy(w, launcher)
	if err != nil {
		return err
	}
	sum := sha256.New()
	length, err := io.Copy(io.MultiWriter(w, sum), archive)
	if err != nil {
		return err
	}
	trailer := []byte(magic)
	trailer = binary.LittleEndian.AppendUint64(trailer, uint64(offset))
	trailer = binary.LittleEndian.AppendUint64(trailer, uint64(length))
	_, err = w.Write(sum.Sum(trailer))
	return err
}

// ErrNoBundle is returned for a launcher that carries no archive.
var ErrNoBundle = errors.New("this launcher carries no distribution")

// Bundle is the archive in a launcher.
type Bundle struct {
	file    *os.File
	archive *io.SectionReader
	sum     [sha256.Size]byte
}

// Open finds the archive in a launcher.
func Open(launcher string) (*Bundle, error) {
	file, err := os.Open(launcher)
	if err != nil {
		return nil, err
	}
	b := &Bundle{file: file}
	if err := b.readTrailer(); err != nil {
		file.Close()
		return nil, fmt.Errorf("open the bundle in %s: %w", launcher, err)
	}
	return b, nil
}

// Close closes the launcher.
func (b *Bundle) Close() error { return b.file.Close() }

func (b *Bundle) readTrailer() error {
	info, err := b.file.Stat()
	if err != nil {
		return err
	}
	end := info.Size() - int64(trailerLength)
	if end < 0 {
		return ErrNoBundle
	}
	trailer := make([]byte, trailerLength)
	if _, err := b.file.ReadAt(trailer, end); err != nil {
		return err
	}
	rest, found := bytes.CutPrefix(trailer, []byte(magic))
	if !found {
		return ErrNoBundle
	}
	offset, length := int64(binary.LittleEndian.Uint64(rest)), int64(binary.LittleEndian.Uint64(rest[8:]))
	if offset < 0 || length < 0 || offset+length != end {
		return fmt.Errorf("it is damaged: the trailer speaks of %d bytes at %d, the file has %d", length, offset, info.Size())
	}
	copy(b.sum[:], rest[16:])
	b.archive = io.NewSectionReader(b.file, offset, length)
	return nil
}

// Digest identifies the archive: its SHA-256.
func (b *Bundle) Digest() [sha256.Size]byte { return b.sum }

// Verify reads the archive and compares it with its digest.
func (b *Bundle) Verify() error {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(b.archive, 0, b.archive.Size())); err != nil {
		return err
	}
	if got := [sha256.Size]byte(sum.Sum(nil)); got != b.sum {
		return fmt.Errorf("the bundle is damaged: its SHA-256 is %x, not %x", got, b.sum)
	}
	return nil
}

// Build returns the record of the build.
func (b *Bundle) Build() (record.Build, error) {
	var build record.Build
	err := b.each(func(header *tar.Header, content io.Reader) (bool, error) {
		if header.Name != ManifestName {
			return false, fmt.Errorf("the bundle begins with %s, not with %s", header.Name, ManifestName)
		}
		return false, json.NewDecoder(content).Decode(&build)
	})
	return build, err
}

// Unpack verifies the archive and writes its files beneath dir, which must not
// exist: it appears when it is complete.
func (b *Bundle) Unpack(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("unpack to %s: %w", dir, os.ErrExist)
	}
	if err := b.Verify(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	err = b.each(func(header *tar.Header, content io.Reader) (bool, error) {
		return true, unpackMember(temporary, header, content)
	})
	if err != nil {
		return fmt.Errorf("unpack to %s: %w", dir, err)
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	return os.Rename(temporary, dir)
}

// each calls f for the members of the archive while it returns true.
func (b *Bundle) each(f func(*tar.Header, io.Reader) (bool, error)) error {
	decoder, err := zstd.NewReader(io.NewSectionReader(b.archive, 0, b.archive.Size()))
	if err != nil {
		return err
	}
	defer decoder.Close()
	archive := tar.NewReader(decoder)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if more, err := f(header, archive); err != nil || !more {
			return err
		}
	}
}

func unpackMember(dir string, header *tar.Header, content io.Reader) error {
	if !filepath.IsLocal(header.Name) {
		return fmt.Errorf("the bundle reaches outside of its folder: %s", header.Name)
	}
	target := filepath.Join(dir, header.Name)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if header.Typeflag == tar.TypeSymlink {
		if !filepath.IsLocal(path.Join(path.Dir(header.Name), header.Linkname)) {
			return fmt.Errorf("the bundle's link %s reaches outside of its folder: %s", header.Name, header.Linkname)
		}
		return os.Symlink(header.Linkname, target)
	}
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, header.FileInfo().Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	return errors.Join(err, out.Close())
}
