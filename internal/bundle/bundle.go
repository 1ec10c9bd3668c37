// Package bundle packs the files of a distribution into one deterministic
// tar.zst, attaches it to the launcher, and unpacks it again.
//
// The archive is a chain of zstd frames (RFC 8878, section 3: frames may be
// concatenated). No frame spans two files, so that a file that did not change is
// not compressed again. The launcher carries it behind its own ELF image, in front
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
	"runtime/debug"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// ManifestName is the first file of the archive: the record of the build.
const ManifestName = "build.json"

// level is the last one that costs little. Measured on the 156 MB of kube with 2
// cores: SpeedDefault 41.8 MB in 0.4 s, SpeedBetterCompression 39.7 MB in 0.7 s,
// SpeedBestCompression 37.2 MB in 7.4 s. Unpacking 361 MB takes 0.4 to 0.6 s after
// any of them.
const level = zstd.SpeedBetterCompression

// Format identifies how files become bytes of the archive: who keeps frames has to
// drop them when it changes. The version of the compressor is part of it.
func Format() string {
	compressor := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/klauspost/compress" {
				compressor = dep.Version
			}
		}
	}
	return fmt.Sprintf("ustar, zstd level %v, chunks of %d, %s", level, chunk, compressor)
}

// Pack writes the archive. The record's outputs say which files and links it
// holds; open returns the bytes of a file, and compressed those of its frame,
// which a cache may know already.
func Pack(w io.Writer, build record.Build, compressed func(record.Output) (io.ReadCloser, error)) error {
	manifest, err := Manifest(build)
	if err != nil {
		return err
	}
	if err := writeManifest(w, manifest); err != nil {
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

func writeManifest(w io.Writer, manifest []byte) error {
	return writeMember(w, &tar.Header{Name: ManifestName, Mode: 0o644, Size: int64(len(manifest))}, frameOf(manifest))
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

// encoder is shared: its EncodeAll may run several times at once.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		panic(err) // the options are constants
	}
	return encoder
})

// compress returns one frame.
func compress(data []byte) []byte { return encoder().EncodeAll(data, make([]byte, 0, len(data)/3)) }

// frameOf compresses a few bytes.
func frameOf(data []byte) io.Reader { return bytes.NewReader(compress(data)) }

// chunk is how many bytes of a file make a frame. The chunks are compressed in
// parallel; their size, and so the result, does not depend on the machine.
const chunk = 16 << 20

// Compress writes the frames of a file of the given size in bytes.
func Compress(w io.Writer, file io.ReaderAt, size int64) error {
	frames := make([][]byte, (size+chunk-1)/chunk)
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range frames {
		group.Go(func() error {
			data := make([]byte, min(chunk, size-int64(i)*chunk))
			if _, err := file.ReadAt(data, int64(i)*chunk); err != nil {
				return err
			}
			frames[i] = compress(data)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, frame := range frames {
		if _, err := w.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

// trailer ends a launcher that carries an archive: 16 bytes of magic, offset and
// length of the archive (64 bits each, little endian), and the SHA-256 of its
// manifest, which holds that of each file.
const (
	magic         = "k3s9p-bundle-v1\n"
	trailerLength = len(magic) + 8 + 8 + sha256.Size
)

// Attach writes the launcher, the archive of a build and the trailer.
func Attach(w io.Writer, launcher io.Reader, build record.Build, compressed func(record.Output) (io.ReadCloser, error)) error {
	manifest, err := Manifest(build)
	if err != nil {
		return err
	}
	offset, err := io.Copy(w, launcher)
	if err != nil {
		return err
	}
	archive := &counted{w: w}
	if err := Pack(archive, build, compressed); err != nil {
		return err
	}
	return writeTrailer(w, offset, archive.length, manifest)
}

func writeTrailer(w io.Writer, offset, length int64, manifest []byte) error {
	sum := sha256.Sum256(manifest)
	trailer := []byte(magic)
	trailer = binary.LittleEndian.AppendUint64(trailer, uint64(offset))
	trailer = binary.LittleEndian.AppendUint64(trailer, uint64(length))
	_, err := w.Write(append(trailer, sum[:]...))
	return err
}

// WriteRelease writes this launcher, whose record has no release, with one that has.
// The programs are copied as they are, compressed. It returns the new record.
func (b *Bundle) WriteRelease(w io.Writer, release string) (record.Build, error) {
	build, err := b.Build()
	if err != nil {
		return build, err
	}
	if build.Release != "" {
		return build, fmt.Errorf("it is the release %s already", build.Release)
	}
	old, err := Manifest(build)
	if err != nil {
		return build, err
	}
	var head bytes.Buffer
	if err := writeManifest(&head, old); err != nil {
		return build, err
	}
	there := make([]byte, head.Len())
	if _, err := b.archive.ReadAt(there, 0); err != nil || !bytes.Equal(there, head.Bytes()) {
		return build, errors.Join(errors.New("it was packed by another version of this program"), err)
	}
	build.Release = release
	manifest, err := Manifest(build)
	if err != nil {
		return build, err
	}
	offset, err := io.Copy(w, io.NewSectionReader(b.file, 0, b.offset))
	if err != nil {
		return build, err
	}
	archive := &counted{w: w}
	if err := writeManifest(archive, manifest); err != nil {
		return build, err
	}
	rest := io.NewSectionReader(b.archive, int64(head.Len()), b.archive.Size()-int64(head.Len()))
	if _, err := io.Copy(archive, rest); err != nil {
		return build, err
	}
	return build, writeTrailer(w, offset, archive.length, manifest)
}

// counted counts what is written through it.
type counted struct {
	w      io.Writer
	length int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.length += int64(n)
	return n, err
}

// ErrDamaged is wrapped by the errors about a bundle that is not what was packed.
var ErrDamaged = errors.New("the bundle is damaged")

// ErrNoBundle is returned for a launcher that carries no archive.
var ErrNoBundle = errors.New("this launcher carries no distribution")

// Bundle is the archive in a launcher.
type Bundle struct {
	file    *os.File
	offset  int64 // of the archive
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
		return fmt.Errorf("%w: its trailer speaks of %d bytes at %d, the file has %d", ErrDamaged, length, offset, info.Size())
	}
	copy(b.sum[:], rest[16:])
	b.offset, b.archive = offset, io.NewSectionReader(b.file, offset, length)
	return nil
}

// Digest identifies what is in the archive: the SHA-256 of its manifest.
func (b *Bundle) Digest() [sha256.Size]byte { return b.sum }

// Build returns the record of the build.
func (b *Bundle) Build() (record.Build, error) {
	var build record.Build
	err := b.each(func(header *tar.Header, content io.Reader) (bool, error) {
		var err error
		build, err = b.readManifest(header, content)
		return false, err
	})
	return build, err
}

func (b *Bundle) readManifest(header *tar.Header, content io.Reader) (record.Build, error) {
	var build record.Build
	manifest, err := io.ReadAll(content)
	if err != nil {
		return build, err
	}
	if header.Name != ManifestName || sha256.Sum256(manifest) != b.sum {
		return build, fmt.Errorf("%w: its manifest is not the one that was packed", ErrDamaged)
	}
	return build, json.Unmarshal(manifest, &build)
}

// Unpack writes the files beneath dir, which must not exist, and compares each
// with its sum in the manifest. The directory appears when it is complete.
func (b *Bundle) Unpack(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("unpack to %s: %w", dir, os.ErrExist)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(dir), ".unpack-")
	if err != nil {
		return err
	}
	defer rmtree.Tree(temporary)
	if err := b.unpackTo(temporary); err != nil {
		return fmt.Errorf("unpack to %s: %w", dir, err)
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	return os.Rename(temporary, dir)
}

func (b *Bundle) unpackTo(dir string) error {
	missing := make(map[string]record.Output)
	err := b.each(func(header *tar.Header, content io.Reader) (bool, error) {
		if header.Name == ManifestName {
			build, err := b.readManifest(header, content)
			for _, output := range build.Outputs {
				missing[output.Path] = output
			}
			return true, err
		}
		output, ok := missing[header.Name]
		if !ok {
			return false, fmt.Errorf("%w: its manifest does not name %q", ErrDamaged, header.Name)
		}
		delete(missing, header.Name)
		return true, unpackMember(dir, output, content)
	})
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: it lacks %d files of its manifest", ErrDamaged, len(missing))
	}
	return err
}

// damageReader tells errors of the archive from those of the disk.
type damageReader struct{ r io.Reader }

func (d damageReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, err
}

// each calls f for the members of the archive while it returns true.
func (b *Bundle) each(f func(*tar.Header, io.Reader) (bool, error)) error {
	decoder, err := zstd.NewReader(io.NewSectionReader(b.archive, 0, b.archive.Size()))
	if err != nil {
		return err
	}
	defer decoder.Close()
	archive := tar.NewReader(damageReader{decoder})
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				err = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			return err
		}
		if more, err := f(header, archive); err != nil || !more {
			return err
		}
	}
}

func unpackMember(dir string, output record.Output, content io.Reader) error {
	if !filepath.IsLocal(output.Path) || !filepath.IsLocal(path.Join(path.Dir(output.Path), output.Link)) {
		return fmt.Errorf("the bundle reaches outside of its directory: %s %s", output.Path, output.Link)
	}
	target := filepath.Join(dir, output.Path)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if output.Link != "" {
		return os.Symlink(output.Link, target)
	}
	file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(file, sum), content)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != output.SHA256 {
		return fmt.Errorf("%w: %s has the SHA-256 %s, not %s", ErrDamaged, output.Path, got, output.SHA256)
	}
	return nil
}
