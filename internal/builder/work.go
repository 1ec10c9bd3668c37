package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"k3s9p/internal/hint"
	"k3s9p/internal/rmtree"
)

// The formats are part of the digests: they change with the code that makes the
// trees and outputs, where that changes the result.
const (
	treeFormat   = "tree 1"
	outputFormat = "output 1"
)

// kept is how many outputs and trees of one name stay in .work besides the
// newest, so that going back to an earlier patch costs nothing.
const kept = 2

// Builder holds what all phases need.
//
// Its folder .work/ has: src/ (patched modules), stock/ (the same without
// patches, for comparisons), mod/ (generated go.mod files), out/ (compiled sets),
// frames/ (compressed files), root/ (the sandboxes' root), sandboxes/ (those that
// run), edit/ (trees of patch:edit), tmp/ (what is not
// finished) and lock. All but edit/ can be removed at any time.
type Builder struct {
	Root string // of the repository
	UI   UI
	env  []string // further variables of the go command

	made map[string]bool // folders of .work/out that this process has made
}

func (b *Builder) work(elem ...string) string {
	return filepath.Join(append([]string{b.Root, ".work"}, elem...)...)
}

func (b *Builder) dist(elem ...string) string {
	return filepath.Join(append([]string{b.Root, "dist"}, elem...)...)
}

// temporary makes a folder in .work/tmp.
func (b *Builder) temporary(name string) (string, error) {
	if err := os.MkdirAll(b.work("tmp"), 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(b.work("tmp"), name+"-")
}

// publish moves a finished file or folder to its content-addressed place. The
// name is complete or absent at any moment.
func publish(temporary, final string) error {
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	if err := rmtree.Tree(final); err != nil {
		return err
	}
	return os.Rename(temporary, final)
}

// sweep removes what killed builds left. The caller holds the lock.
func (b *Builder) sweep() error {
	if err := rmtree.Tree(b.work("tmp")); err != nil {
		return err
	}
	for _, pattern := range []string{b.dist(".tmp-*"), b.dist("*", ".tmp-*"), b.work("*", ".tmp-*")} {
		left, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, name := range left {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// prune removes all but the newest entries of each name in a folder of .work;
// entries are called <name>-<digest>. In use are never removed.
func (b *Builder) prune(folder string, inUse []string) error {
	entries, err := os.ReadDir(b.work(folder))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	byName := make(map[string][]os.FileInfo)
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || slices.Contains(inUse, b.work(folder, entry.Name())) {
			continue
		}
		name := entry.Name()
		if dash := strings.LastIndexByte(name, '-'); dash > 0 {
			name = name[:dash]
		}
		byName[name] = append(byName[name], info)
	}
	for _, infos := range byName {
		slices.SortFunc(infos, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
		for _, info := range infos[min(kept, len(infos)):] {
			if err := rmtree.Tree(b.work(folder, info.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// digestOf is the SHA-256 of a list of strings, in hexadecimal.
func digestOf(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// sha256Hex is the SHA-256 of data in hexadecimal.
func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// hashFile returns the SHA-256 of a file in hexadecimal, and its size in bytes.
func hashFile(name string) (string, int64, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer file.Close()
	h := sha256.New()
	size, err := io.Copy(h, file)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// copyFile copies a file aside and renames it into place.
func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeAside(to, mode, func(out io.Writer) error {
		_, err := io.Copy(out, in)
		return err
	})
}

// writeAside writes a temporary file beside the final one and renames it.
func writeAside(final string, mode os.FileMode, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(final), ".tmp-"+filepath.Base(final)+"-")
	if err != nil {
		return err
	}
	err = errors.Join(write(out), out.Chmod(mode), out.Close())
	if err == nil {
		err = os.Rename(out.Name(), final)
	}
	if err != nil {
		os.Remove(out.Name())
	}
	return err
}

// noSpace adds what to do to an error about a full disk, also one that only the
// output of a command tells of.
func (b *Builder) noSpace(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "no space left on device") {
		return hint.Add(fmt.Errorf("the disk is full: %w", err),
			"a cold build needs about 6 GB in %s, the Go build cache and the module cache; nothing in dist/ is half-written, and mage clean empties .work", b.work())
	}
	return err
}
