package patch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"k3s9p/internal/hint"
)

// Moved is a hunk that was applied at another line than its patch says.
type Moved struct {
	Patch, File string
	Hunk        int // from 1
	Lines       int // how many further down it stands
}

func (m Moved) String() string {
	return fmt.Sprintf("%s: hunk %d of %s stands %+d lines from where it says", m.Patch, m.Hunk, m.File, m.Lines)
}

// Apply lays the overlay over the tree of a module and applies the patches to it,
// in order. In the version that the series was made for each hunk has to stand at its
// exact line; in the others that it names it may have moved, as a whole, to the only
// place that has all of its lines: those are returned. A tree in which Apply failed is
// to be thrown away.
func (s Series) Apply(tree, path, version string) ([]Moved, error) {
	module := path + " " + version
	if err := s.layOverlay(tree); err != nil {
		return nil, fmt.Errorf("overlay %s: %w", module, err)
	}
	var moved []Moved
	for _, p := range s.Patches {
		m, err := p.apply(tree, module, s.MadeFor(path, version))
		if err != nil {
			return nil, err
		}
		moved = append(moved, m...)
	}
	return moved, nil
}

// layOverlay copies the whole files. A file that upstream has too is an error:
// changes to upstream files belong into a patch, where they can be seen.
func (s Series) layOverlay(tree string) error {
	files, err := s.OverlayFiles()
	if err != nil {
		return err
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(s.Overlay, name))
		if err != nil {
			return err
		}
		target := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, os.ErrExist) {
			return hint.Add(fmt.Errorf("%s exists upstream", name), "change upstream files by a patch; the overlay only adds files")
		}
		if err != nil {
			return err
		}
		_, err = out.Write(data)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (p Patch) apply(tree, module string, exact bool) ([]Moved, error) {
	var moved []Moved
	for _, f := range p.Files {
		m, err := p.applyFile(tree, module, f, exact)
		if err != nil {
			return nil, err
		}
		moved = append(moved, m...)
	}
	return moved, nil
}

func (p Patch) applyFile(tree, module string, f *gitdiff.File, exact bool) ([]Moved, error) {
	where := fmt.Sprintf("patch %s: %s", module, p.Name)
	if f.IsNew || f.IsDelete || f.IsRename || f.IsCopy || f.IsBinary {
		return nil, hint.Add(fmt.Errorf("%s: it adds, deletes, renames or copies a file, or changes a binary one (%s%s)", where, f.OldName, f.NewName),
			"new files go under overlay/, where they can be read and tested as files")
	}
	path := filepath.Join(tree, f.NewName)
	src, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: hunk 1 does not apply: there is no file %s", where, f.NewName)
	}
	if err != nil {
		return nil, err
	}
	var moved []Moved
	if !exact {
		f, moved = p.follow(f, strings.SplitAfter(string(src), "\n"))
	}
	var dst bytes.Buffer
	if err := gitdiff.Apply(&dst, bytes.NewReader(src), f); err != nil {
		return nil, drift(where, f, src, err)
	}
	return moved, replaceFile(path, dst.Bytes())
}

// replaceFile puts a new file in the place of an old one: the old one may be a
// hard link to the stock tree.
func replaceFile(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, data, info.Mode().Perm())
}

// drift turns the error of a hunk into one that shows where it stands, what it
// wants there and what is there, and whether its lines have only moved.
func drift(where string, f *gitdiff.File, src []byte, err error) error {
	var at *gitdiff.ApplyError
	if !errors.As(err, &at) || at.Fragment < 1 || at.Fragment > len(f.TextFragments) {
		return fmt.Errorf("%s does not apply to %s: %w", where, f.NewName, err)
	}
	hunk := f.TextFragments[at.Fragment-1]
	lines := strings.SplitAfter(string(src), "\n")
	line := int(hunk.OldPosition)
	want, found := "", "the end of the file"
	if at.FragmentLine >= 1 && at.FragmentLine <= len(hunk.Lines) {
		line = int(at.Line)
		want = hunk.Lines[at.FragmentLine-1].Line
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		line = len(lines)
	}
	if line >= 1 && line <= len(lines) && lines[line-1] != "" {
		found = fmt.Sprintf("%q", strings.TrimSuffix(lines[line-1], "\n"))
	}
	message := fmt.Errorf("%s: hunk %d does not apply at %s:%d: found %s", where, at.Fragment, f.NewName, line, found)
	if want != "" {
		message = fmt.Errorf("%w, want %q", message, strings.TrimSuffix(want, "\n"))
	}
	if moved := locate(hunk, lines); len(moved) == 1 && moved[0] != int(hunk.OldPosition) {
		return hint.Add(message, "the hunk's lines stand at line %d, not at %d: if that is their place, regenerate the series with patch:edit and patch:save",
			moved[0], hunk.OldPosition)
	}
	return hint.Add(message, "upstream or an earlier patch changed these lines: bring the series up to date with patch:edit and patch:save")
}

// follow returns the changes of a file with each hunk that has moved at its new place.
// One whose lines stand at several places, nowhere, or before those of the hunk in front
// of it, stays: it does not apply then.
func (p Patch) follow(f *gitdiff.File, lines []string) (*gitdiff.File, []Moved) {
	var moved []Moved
	changed := *f
	changed.TextFragments = nil
	end := int64(0) // the last line of the hunk before
	for i, hunk := range f.TextFragments {
		at := *hunk
		places := locate(hunk, lines)
		if len(places) == 1 && places[0] != int(hunk.OldPosition) && int64(places[0]) > end && hunk.OldLines > 0 {
			by := places[0] - int(hunk.OldPosition)
			at.OldPosition += int64(by)
			at.NewPosition += int64(by)
			moved = append(moved, Moved{p.Name, f.NewName, i + 1, by})
		}
		end = at.OldPosition + at.OldLines - 1
		changed.TextFragments = append(changed.TextFragments, &at)
	}
	return &changed, moved
}

// locate returns the line numbers at which the old lines of a hunk stand.
func locate(hunk *gitdiff.TextFragment, lines []string) []int {
	var old []string
	for _, line := range hunk.Lines {
		if line.Old() {
			old = append(old, line.Line)
		}
	}
	var places []int
	for i := 0; i+len(old) <= len(lines); i++ {
		if slices.Equal(lines[i:i+len(old)], old) {
			places = append(places, i+1)
		}
	}
	return places
}
