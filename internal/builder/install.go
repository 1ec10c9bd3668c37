package builder

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"k3s9p/internal/bundle"
	"k3s9p/internal/digest"
	"k3s9p/internal/pin"
	"k3s9p/internal/record"
	"k3s9p/internal/workdir"
)

const (
	RecordName = bundle.ManifestName
	SumsName   = "SHA256SUMS"
)

// recordOf describes the files of some compiled sets.
func recordOf(selection pin.Selection, chain record.Toolchain, sets []Compiled) record.Build {
	build := record.Build{Distribution: selection.Distribution, Toolchain: chain}
	for _, set := range sets {
		build.Sets = append(build.Sets, set.Record)
		build.Outputs = append(build.Outputs, set.Outputs...)
	}
	build.Version = pin.VersionWith(selection.Upstream(), pin.PatchDigest(selection.Sets...))
	slices.SortFunc(build.Outputs, func(a, b record.Output) int { return strings.Compare(a.Path, b.Path) })
	return build
}

// install brings dist/ to the state of the record. Each file is complete or the
// old one at any moment; build.json and SHA256SUMS come last, so that a dist/ in
// between does not match its SHA256SUMS. There are the sums of the files in dist/ by
// path. It returns the number of files that changed.
func (b *Builder) install(d distribution, there map[string]string) (int, error) {
	changed := 0
	for _, output := range d.record.Outputs {
		wrote, err := b.installOne(d, output, there)
		if err != nil {
			return changed, fmt.Errorf("write %s: %w", b.Dist(output.Path), err)
		}
		if wrote {
			changed++
		}
	}
	data, err := bundle.Manifest(d.record)
	if err != nil {
		return changed, err
	}
	sums := sumsOf(d.record, data)
	removed, err := b.removeStale(sums)
	if err != nil {
		return changed, err
	}
	changed += removed
	for name, content := range map[string][]byte{RecordName: data, SumsName: sums} {
		if old, err := os.ReadFile(b.Dist(name)); err == nil && bytes.Equal(old, content) {
			continue
		}
		changed++
		if err := workdir.WriteFile(b.Dist(name), content); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (b *Builder) installOne(d distribution, output record.Output, there map[string]string) (bool, error) {
	target := b.Dist(output.Path)
	if output.Link != "" {
		if link, err := os.Readlink(target); err == nil && link == output.Link {
			return false, nil
		}
		return true, workdir.Symlink(output.Link, target)
	}
	if info, err := os.Lstat(target); err == nil && info.Mode() == 0o755 && info.Size() == output.Size && there[output.Path] == output.SHA256 {
		return false, nil
	}
	set, ok := d.source(output)
	if !ok {
		return false, errors.New("no set has made it")
	}
	if !set.fresh {
		if sum, _, err := digest.File(set.File(output)); err != nil || sum != output.SHA256 {
			return false, &damagedError{dir: set.Dir}
		}
	}
	return true, workdir.LinkFile(set.File(output), target)
}

// damagedError is a compiled set that is not what was compiled: files in dist/
// are hard links to it, and somebody wrote to one in place.
type damagedError struct{ dir string }

func (e *damagedError) Error() string { return e.dir + " was changed after it was built" }

// sumDist hashes the files in dist/ while something else goes on, with time that
// nobody else wants. The function that it returns waits for the sums, by path.
func (b *Builder) sumDist() func() map[string]string {
	sums := make(map[string]string)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
		list, err := os.ReadFile(b.Dist(SumsName))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(list)) {
			if _, name, found := strings.Cut(strings.TrimSpace(line), "  "); found && filepath.IsLocal(name) {
				if sum, _, err := digest.File(b.Dist(name)); err == nil {
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
	fmt.Fprintf(&sums, "%s  %s\n", digest.Bytes(manifest), RecordName)
	return sums.Bytes()
}

// removeStale removes files that the SHA256SUMS of the last build lists and that
// of this one does not.
func (b *Builder) removeStale(sums []byte) (int, error) {
	old, err := os.ReadFile(b.Dist(SumsName))
	if err != nil {
		return 0, nil // nothing was built yet
	}
	removed := 0
	for line := range strings.Lines(string(old)) {
		_, name, found := strings.Cut(strings.TrimSpace(line), "  ")
		if !found || !filepath.IsLocal(name) || bytes.Contains(sums, []byte("  "+name+"\n")) {
			continue
		}
		if err := os.Remove(b.Dist(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
