package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
	"sigs.k8s.io/yaml"

	"k3s9p/internal/hint"
)

// ConfigFile is the file that makes a directory a series.
const ConfigFile = "series.yaml"

// Target is a module in the versions that a series applies to.
type Target struct {
	Path     string   `json:"path"`
	Versions []string `json:"versions"`
}

// Series is an ordered list of patches for a module, with the directory of whole
// files that they hook in.
type Series struct {
	Dir     string
	Modules []Target // the first version of the first one is that which it was made for
	Overlay string   // absolute; empty if the series adds no files
	Patches []Patch
}

// Patch is one file of a series.
type Patch struct {
	Name   string // base name: 0001-what-it-does.patch
	Header Header
	Files  []*gitdiff.File
	Raw    []byte
}

// Digest is the SHA-256 of the patch file, in hexadecimal.
func (p Patch) Digest() string {
	sum := sha256.Sum256(p.Raw)
	return hex.EncodeToString(sum[:])
}

// config is the format of series.yaml.
type config struct {
	Modules []Target `json:"modules"`
	Overlay string   `json:"overlay,omitempty"` // directory under overlay/
}

// patchName is the form of a patch's file name.
var patchName = regexp.MustCompile(`^[0-9]{4}-[a-z0-9.+-]+\.patch$`)

// ReadAll reads every series beneath patchesDir.
func ReadAll(patchesDir, overlayDir string) ([]Series, error) {
	var all []Series
	err := filepath.WalkDir(patchesDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != ConfigFile {
			return err
		}
		series, err := read(filepath.Dir(path), overlayDir)
		all = append(all, series)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func read(dir, overlayDir string) (Series, error) {
	file := filepath.Join(dir, ConfigFile)
	data, err := os.ReadFile(file)
	if err != nil {
		return Series{}, err
	}
	var c config
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return Series{}, fmt.Errorf("%s: %w", file, err)
	}
	if len(c.Modules) == 0 {
		return Series{}, fmt.Errorf("%s names no modules", file)
	}
	for _, target := range c.Modules {
		if target.Path == "" || len(target.Versions) == 0 {
			return Series{}, fmt.Errorf("%s: a module has no path or no versions", file)
		}
	}
	series := Series{Dir: dir, Modules: c.Modules}
	if c.Overlay != "" {
		series.Overlay = filepath.Join(overlayDir, c.Overlay)
		if _, err := os.Stat(series.Overlay); err != nil {
			return Series{}, fmt.Errorf("%s: overlay: %w", file, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Series{}, err
	}
	for _, entry := range entries {
		if entry.Name() == ConfigFile {
			continue
		}
		if !patchName.MatchString(entry.Name()) {
			return Series{}, fmt.Errorf("%s: a file of a series is named like 0001-what-it-does.patch", filepath.Join(dir, entry.Name()))
		}
		p, err := readPatch(filepath.Join(dir, entry.Name()))
		if err != nil {
			return Series{}, err
		}
		series.Patches = append(series.Patches, p)
	}
	return series, nil
}

// separator stands between the header and the diff.
const separator = "\n---\n"

func readPatch(file string) (Patch, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return Patch{}, err
	}
	p, err := parse(raw)
	if err != nil {
		return Patch{}, hint.Add(fmt.Errorf("patch %s: %w", file, err),
			"a patch is a DEP-3 header (%s), a line \"---\", and a diff as git prints it", strings.Join(required, ", "))
	}
	p.Name = filepath.Base(file)
	return p, nil
}

func parse(raw []byte) (Patch, error) {
	header, diff, found := strings.Cut(string(raw), separator)
	if !found {
		return Patch{}, errors.New(`it has no DEP-3 header that ends in a line "---"`)
	}
	p := Patch{Raw: raw}
	var err error
	if p.Header, err = parseHeader(header); err != nil {
		return Patch{}, err
	}
	var preamble string
	if p.Files, preamble, err = gitdiff.Parse(strings.NewReader(diff)); err != nil {
		return Patch{}, fmt.Errorf("its diff cannot be read: %w", err)
	}
	if len(p.Files) == 0 {
		return Patch{}, errors.New("it changes no file")
	}
	if strings.TrimSpace(preamble) != "" {
		return Patch{}, errors.New("there is text between its header and its diff")
	}
	for _, f := range p.Files {
		for _, name := range []string{f.OldName, f.NewName} {
			if name != "" && !filepath.IsLocal(name) {
				return Patch{}, fmt.Errorf("it reaches outside of the module: %s", name)
			}
		}
	}
	return p, nil
}

// Find returns the series for a module at a version. An error says which versions
// there are series for.
func Find(all []Series, module, version string) (Series, error) {
	var known []string
	for _, s := range all {
		for _, target := range s.Modules {
			if target.Path != module {
				continue
			}
			if slices.Contains(target.Versions, version) {
				return s, nil
			}
			known = append(known, target.Versions...)
		}
	}
	if len(known) == 0 {
		return Series{}, fmt.Errorf("no series in patches/ is for %s", module)
	}
	return Series{}, hint.Add(fmt.Errorf("no series in patches/ is for %s %s", module, version),
		"there are series for %s; add the version to a %s if its patches still apply", strings.Join(known, ", "), ConfigFile)
}

// MadeFor reports whether the series was made for this version of a module: the first
// one that its series.yaml names.
func (s Series) MadeFor(path, version string) bool {
	return len(s.Modules) == 0 || s.Modules[0].Path == path && s.Modules[0].Versions[0] == version
}

// Digest identifies what the series does to a tree: its patches and its overlay.
// It is a SHA-256 in hexadecimal.
func (s Series) Digest() (string, error) {
	h := sha256.New()
	for _, p := range s.Patches {
		fmt.Fprintf(h, "patch %s %s\n", p.Name, p.Digest())
	}
	files, err := s.OverlayFiles()
	if err != nil {
		return "", err
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(s.Overlay, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "overlay %s %x\n", name, sha256.Sum256(data))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// OverlayFiles lists the whole files that the series adds, relative to the
// module's root, sorted.
func (s Series) OverlayFiles() ([]string, error) {
	if s.Overlay == "" {
		return nil, nil
	}
	var files []string
	err := filepath.WalkDir(s.Overlay, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.Overlay, path)
		files = append(files, name)
		return err
	})
	return files, err
}

// slug makes the file name of a patch from its description.
func slug(number int, description string) string {
	words := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(description), "-")
	words = strings.Trim(words, "-")
	if len(words) > 60 {
		words = words[:60]
		if cut := strings.LastIndexByte(words, '-'); cut > 0 {
			words = words[:cut]
		}
	}
	return fmt.Sprintf("%04d-%s.patch", number, words)
}

// format prints a patch: the header as it was written, and the diff without the
// object names that git adds, which would change with any line of the file.
func format(header, diff string) ([]byte, error) {
	files, _, err := gitdiff.Parse(strings.NewReader(diff))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString(strings.TrimSpace(header))
	out.WriteString(separator)
	for _, f := range files {
		f.OldOIDPrefix, f.NewOIDPrefix = "", ""
		out.WriteString(f.String())
	}
	return out.Bytes(), nil
}

// Lengthen adds a line after the first line of a patch that opens a block in a
// file, and reports whether there is one.
func Lengthen(raw []byte, name, line string) ([]byte, bool, error) {
	p, err := parse(raw)
	if err != nil {
		return nil, false, err
	}
	header, _, _ := strings.Cut(string(raw), separator)
	var diff strings.Builder
	done := false
	for _, f := range p.Files {
		added := int64(0)
		for _, hunk := range f.TextFragments {
			hunk.NewPosition += added
			at := slices.IndexFunc(hunk.Lines, func(l gitdiff.Line) bool { return l.Op == gitdiff.OpAdd && strings.HasSuffix(l.Line, "{\n") })
			if done || f.NewName != name || at < 0 {
				continue
			}
			hunk.Lines = slices.Insert(hunk.Lines, at+1, gitdiff.Line{Op: gitdiff.OpAdd, Line: line})
			hunk.NewLines++
			hunk.LinesAdded++
			added, done = 1, true
		}
		diff.WriteString(f.String())
	}
	edited, err := format(header, diff.String())
	return edited, done, err
}
