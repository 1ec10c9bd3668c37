package k3s

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"k3s9p/internal/digest"
)

// MaxSize is how large upstream lets its file become, in bytes: 80 MiB
// (scripts/binary_size_check.sh).
const MaxSize = 80 << 20

// Entry is a file or a symbolic link of the archive.
type Entry struct {
	Name string // bin/k3s
	File string // whose content it has
	Link string // what it names, for a link
	Mode fs.FileMode
}

// Format identifies how entries become an archive.
const Format = "k3s data: gnu tar, zstd best, window of 32 MiB, 1"

// window is that of upstream's zstd --long=25: the decoder in k3s accepts no larger one.
const window = 1 << 25

// WriteArchive writes the archive that k3s unpacks when it starts, as
// scripts/package-cli makes it: bin/ with the lists of sums and links by which k3s
// verifies it, and etc/. The same entries give the same bytes.
func WriteArchive(w io.Writer, entries []Entry) error {
	entries = slices.Clone(entries)
	sums, links, err := lists(entries)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	compressed, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return err
	}
	archive := tar.NewWriter(compressed)
	a := &writer{archive, map[string]bool{".": true}}
	for _, list := range []struct {
		name string
		data []byte
	}{{"bin/.links", links}, {"bin/.sha256sums", sums}} {
		if err := a.data(list.name, 0o644, int64(len(list.data)), bytes.NewReader(list.data)); err != nil {
			return err
		}
	}
	for _, entry := range entries {
		if err := a.entry(entry); err != nil {
			return fmt.Errorf("pack %s: %w", entry.Name, err)
		}
	}
	return errors.Join(a.directory("etc"), archive.Close(), compressed.Close())
}

// lists are the contents of bin/.sha256sums and bin/.links.
func lists(entries []Entry) (sums, links []byte, err error) {
	var sumLines, linkLines []string
	for _, entry := range entries {
		name, inBin := strings.CutPrefix(entry.Name, "bin/")
		switch {
		case !inBin:
		case entry.Link != "":
			linkLines = append(linkLines, name+" "+entry.Link+"\n")
		default:
			sum, _, err := digest.File(entry.File)
			if err != nil {
				return nil, nil, err
			}
			sumLines = append(sumLines, name+"\x00"+sum+"  "+name+"\n")
		}
	}
	slices.Sort(sumLines)
	slices.Sort(linkLines)
	for _, line := range sumLines {
		_, text, _ := strings.Cut(line, "\x00")
		sums = append(sums, text...)
	}
	return sums, []byte(strings.Join(linkLines, "")), nil
}

// writer writes members, each after its directories.
type writer struct {
	*tar.Writer
	made map[string]bool
}

// header is that of a member: nothing in it depends on the machine or the time.
func header(kind byte, name string, mode fs.FileMode) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: "./" + name, Mode: int64(mode.Perm()), Format: tar.FormatGNU}
}

func (w *writer) directory(name string) error {
	if w.made[name] {
		return nil
	}
	if err := w.directory(path.Dir(name)); err != nil {
		return err
	}
	w.made[name] = true
	return w.WriteHeader(header(tar.TypeDir, name+"/", 0o755))
}

func (w *writer) data(name string, mode fs.FileMode, size int64, content io.Reader) error {
	if err := w.directory(path.Dir(name)); err != nil {
		return err
	}
	h := header(tar.TypeReg, name, mode)
	h.Size = size
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, content)
	return err
}

func (w *writer) entry(entry Entry) error {
	if entry.Link != "" {
		if err := w.directory(path.Dir(entry.Name)); err != nil {
			return err
		}
		h := header(tar.TypeSymlink, entry.Name, 0o777)
		h.Linkname = entry.Link
		return w.WriteHeader(h)
	}
	file, err := os.Open(entry.File)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return w.data(entry.Name, entry.Mode, info.Size(), file)
}
