package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"k3s9p/internal/bundle"
	"k3s9p/internal/record"
)

const (
	recordName = bundle.ManifestName
	sumsName   = "SHA256SUMS"
)

// recordOf describes the files of some compiled sets.
func recordOf(selection Selection, chain record.Toolchain, sets []compiled) record.Build {
	build := record.Build{Distribution: selection.Distribution, Toolchain: chain}
	for _, set := range sets {
		build.Sets = append(build.Sets, set.Record)
		build.Outputs = append(build.Outputs, set.Outputs...)
	}
	build.Version = versionWith(selection.upstream(), PatchDigest(selection.Sets...))
	slices.SortFunc(build.Outputs, func(a, b record.Output) int { return strings.Compare(a.Path, b.Path) })
	return build
}

// install brings dist/ to the state of the record. Each file is complete or the
// old one at any moment; build.json and SHA256SUMS come last, so that a dist/ in
// between does not match its SHA256SUMS. Source names the folder of .work/out that
// an output comes from. There are the sums of the files in dist/
// by path. It returns the number of files that changed.
func (b *Builder) install(build record.Build, there map[string]string, source func(record.Output) string) (int, error) {
	changed := 0
	for _, output := range build.Outputs {
		wrote, err := b.installOne(output, there, source)
		if err != nil {
			return changed, fmt.Errorf("write %s: %w", b.dist(output.Path), err)
		}
		if wrote {
			changed++
		}
	}
	data, err := bundle.Manifest(build)
	if err != nil {
		return changed, err
	}
	sums := sumsOf(build, data)
	removed, err := b.removeStale(sums)
	if err != nil {
		return changed, err
	}
	changed += removed
	for name, content := range map[string][]byte{recordName: data, sumsName: sums} {
		if old, err := os.ReadFile(b.dist(name)); err == nil && bytes.Equal(old, content) {
			continue
		}
		changed++
		err := writeAside(b.dist(name), 0o644, func(w io.Writer) error { _, err := w.Write(content); return err })
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (b *Builder) installOne(output record.Output, sums map[string]string, source func(record.Output) string) (bool, error) {
	target := b.dist(output.Path)
	if output.Link != "" {
		if link, err := os.Readlink(target); err == nil && link == output.Link {
			return false, nil
		}
		temporary := filepath.Join(filepath.Dir(target), ".tmp-"+filepath.Base(target))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return false, err
		}
		if err := os.Symlink(output.Link, temporary); err != nil {
			return false, err
		}
		return true, os.Rename(temporary, target)
	}
	if info, err := os.Lstat(target); err == nil && info.Mode() == 0o755 && info.Size() == output.Size && sums[output.Path] == output.SHA256 {
		return false, nil
	}
	dir := source(output)
	from := filepath.Join(dir, output.Path)
	if !b.made[dir] {
		if sum, _, err := hashFile(from); err != nil || sum != output.SHA256 {
			return false, &damagedError{dir: dir}
		}
	}
	return true, linkFile(from, target)
}

// damagedError is a compiled set that is not what was compiled: files in dist/
// are hard links to it, and somebody wrote to one in place.
type damagedError struct{ dir string }

func (e *damagedError) Error() string { return e.dir + " was changed after it was built" }

// linkFile puts a file into place as a hard link, or as a copy where .work and
// dist are on two filesystems.
func linkFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(to), ".tmp-"+filepath.Base(to))
	if err := os.Link(from, temporary); err != nil {
		return copyFile(from, to, 0o755)
	}
	return os.Rename(temporary, to)
}

// sumDist hashes the files in dist/ while something else goes on, with time that
// nobody else wants. The function that it returns waits for the sums, by path.
func (b *Builder) sumDist() func() map[string]string {
	sums := make(map[string]string)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
		list, err := os.ReadFile(b.dist(sumsName))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(list)) {
			if _, name, found := strings.Cut(strings.TrimSpace(line), "  "); found && filepath.IsLocal(name) {
				if sum, _, err := hashFile(b.dist(name)); err == nil {
					sums[name] = sum
				}
			}
		}
	}()
	return func() map[string]string { <-done; return sums }
}

// sumsOf is the content of SHA256SUMS, in the format of sha256sum(1).
func sumsOf(build record.Build, manifest []byte) []byte {
	var sums bytes.Buffer
	for _, output := range build.Outputs {
		if output.Link == "" {
			fmt.Fprintf(&sums, "%s  %s\n", output.SHA256, output.Path)
		}
	}
	fmt.Fprintf(&sums, "%s  %s\n", sha256Hex(manifest), recordName)
	return sums.Bytes()
}

// removeStale removes files that the SHA256SUMS of the last build lists and that
// of this one does not.
func (b *Builder) removeStale(sums []byte) (int, error) {
	old, err := os.ReadFile(b.dist(sumsName))
	if err != nil {
		return 0, nil // nothing was built yet
	}
	removed := 0
	for line := range strings.Lines(string(old)) {
		_, name, found := strings.Cut(strings.TrimSpace(line), "  ")
		if !found || !filepath.IsLocal(name) || bytes.Contains(sums, []byte("  "+name+"\n")) {
			continue
		}
		if err := os.Remove(b.dist(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
