package builder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
// between does not match its SHA256SUMS. It returns the number of files that
// changed.
func (b *Builder) install(build record.Build, source func(record.Output) string) (int, error) {
	changed := 0
	for _, output := range build.Outputs {
		wrote, err := b.installOne(output, source)
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

func (b *Builder) installOne(output record.Output, source func(record.Output) string) (bool, error) {
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
	if info, err := os.Lstat(target); err == nil && info.Mode() == 0o755 && info.Size() == output.Size {
		if sum, _, err := hashFile(target); err == nil && sum == output.SHA256 {
			return false, nil
		}
	}
	return true, copyFile(source(output), target, 0o755)
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
