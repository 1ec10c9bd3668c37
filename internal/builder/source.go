package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"

	"k3s9p/internal/hint"
)

// downloaded is one object of go mod download -json.
type downloaded struct {
	Path, Version, Error, Zip, Sum string
}

// download fetches all modules of a set, checked by its go.sum, so that
// compiling needs no network. It returns the zips by module path. Modules that
// were fetched and checked before, and are still in the module cache, are not
// asked for again.
func (b *Builder) download(ctx context.Context, set *Set, step *progressStep) (map[string]string, error) {
	goMod, err := b.withoutLocal(set)
	if err != nil {
		return nil, err
	}
	known := b.work("mod", "fetched-"+digestOf(string(goMod), string(set.GoSum))[:16])
	if zips := readFetched(known); zips != nil {
		return zips, nil
	}
	zips, err := b.downloadNow(ctx, set, goMod, step)
	if err != nil {
		return nil, err
	}
	return zips, writeAside(known, 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(zips) })
}

// readFetched returns the zips of an earlier download if all are still there.
func readFetched(name string) map[string]string {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	var zips map[string]string
	if err := json.Unmarshal(data, &zips); err != nil {
		return nil
	}
	for _, zip := range zips {
		if _, err := os.Stat(zip); err != nil {
			return nil
		}
	}
	return zips
}

// withoutLocal is the go.mod of a set with the modules that local folders stand in
// for replaced by these, so that nobody asks a proxy for them.
func (b *Builder) withoutLocal(set *Set) ([]byte, error) {
	trees := make(map[string]string)
	for _, series := range set.Series {
		if series.Local == nil {
			continue
		}
		tree, err := b.stockTree(series, "")
		if err != nil {
			return nil, err
		}
		trees[series.Pin.Path] = tree
	}
	return set.goModWith(trees)
}

func (b *Builder) downloadNow(ctx context.Context, set *Set, goMod []byte, step *progressStep) (map[string]string, error) {
	// go mod download adds sums that are missing. Here a missing sum is an error,
	// so it works on a copy, which must not change.
	dir, err := b.temporary("download-" + set.Name)
	if err != nil {
		return nil, err
	}
	modfile := filepath.Join(dir, "go.mod")
	sumfile := filepath.Join(dir, "go.sum")
	if err := errors.Join(os.WriteFile(modfile, goMod, 0o644), os.WriteFile(sumfile, set.GoSum, 0o644)); err != nil {
		return nil, err
	}
	fetched := 0
	out, runErr := b.run(ctx, command{
		dir:  set.Dir,
		env:  b.goEnv(false),
		args: []string{"go", "mod", "download", "-modfile=" + modfile, "-json"},
		line: func(line string) {
			if name, ok := strings.CutPrefix(line, "go: downloading "); ok {
				fetched++
				step.Note("%d modules, %s", fetched, name)
			}
		},
	})
	if ctx.Err() != nil {
		return nil, runErr
	}
	zips := make(map[string]string)
	decoder := json.NewDecoder(bytes.NewReader(out))
	for {
		var m downloaded
		if err := decoder.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read the output of go mod download for build/%s: %w", set.Name, err)
		}
		if m.Error != "" {
			return nil, moduleError(set, m.Path+" "+m.Version, m.Error)
		}
		zips[m.Path] = m.Zip
	}
	if runErr != nil {
		return nil, moduleError(set, "", strings.Join(stderrOf(runErr), "\n"))
	}
	sums, err := os.ReadFile(sumfile)
	if err != nil {
		return nil, err
	}
	if added := addedLines(set.GoSum, sums); len(added) > 0 {
		return nil, hint.Add(fmt.Errorf("build/%s/go.sum has no checksum for %s", set.Name, strings.Join(added, ", ")),
			"nothing is built without one: cd build/%s && go mod tidy, and compare with a source that you trust", set.Name)
	}
	return zips, nil
}

var (
	proxyAnswer = regexp.MustCompile(`(?:([^\s:]+@v[^\s:]+): )?(?:reading|Get) "?(https?://[^\s"]+|file://[^\s"]+)"?: (\d{3}[^\n]*|[^\n]+)`)
	badSum      = regexp.MustCompile(`(?:verifying )?([^\s:]+@v[^\s:/]+(?:/go\.mod)?): checksum mismatch\s+downloaded: (h1:\S+)\s+go\.sum: +(h1:\S+)`)
)

// moduleError says in one line what the go command says in many.
func moduleError(set *Set, name, text string) error {
	if match := badSum.FindStringSubmatch(text); match != nil {
		return hint.Add(fmt.Errorf("module %s: checksum mismatch: the proxy or the module cache has %s, build/%s/go.sum says %s",
			strings.Replace(match[1], "@", " ", 1), match[2], set.Name, match[3]),
			"either these are not the pinned bytes (go clean -modcache, another GOPROXY) or go.sum was edited; nothing was built from them")
	}
	if match := proxyAnswer.FindStringSubmatch(text); match != nil {
		if match[1] != "" {
			name = strings.Replace(match[1], "@", " ", 1)
		}
		answer := strings.TrimSpace(match[3])
		next := "set GOPROXY to a proxy that can be reached and serves it; its checksum stays pinned in build/" + set.Name + "/go.sum"
		if strings.HasPrefix(answer, "403") || strings.HasPrefix(answer, "404") || strings.HasPrefix(answer, "410") {
			return hint.Add(fmt.Errorf("module %s, pinned by build/%s, is refused by the module proxy: %s (%s)", name, set.Name, answer, match[2]), "%s", next)
		}
		return hint.Add(fmt.Errorf("module %s, pinned by build/%s, cannot be fetched: %s (%s)", name, set.Name, answer, match[2]), "%s", next)
	}
	text = strings.TrimSpace(strings.ReplaceAll(text, "\n", "\n  "))
	if name == "" {
		return fmt.Errorf("fetch the modules of build/%s: %s", set.Name, text)
	}
	return fmt.Errorf("fetch module %s of build/%s: %s", name, set.Name, text)
}

// addedLines names the modules of the lines that only b has.
func addedLines(a, b []byte) []string {
	known := make(map[string]bool)
	for line := range strings.Lines(string(a)) {
		known[strings.TrimSpace(line)] = true
	}
	var added []string
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) == 3 && !known[strings.TrimSpace(line)] {
			added = append(added, fields[0]+" "+fields[1])
		}
	}
	return added
}

// extract unpacks a module zip to dir as a writable tree, after comparing it with
// the pin: the go command trusts the module cache, this does not.
func extract(pin Pin, zipFile, dir string) error {
	sum, err := dirhash.HashZip(zipFile, dirhash.Hash1)
	if err != nil {
		return fmt.Errorf("module %s %s: %w", pin.Path, pin.Version, err)
	}
	if sum != pin.Sum {
		return hint.Add(fmt.Errorf("module %s %s: checksum mismatch: %s has %s, go.sum says %s", pin.Path, pin.Version, zipFile, sum, pin.Sum),
			"the module cache was changed: go clean -modcache")
	}
	if err := zip.Unzip(dir, module.Version{Path: pin.Path, Version: pin.Version}, zipFile); err != nil {
		return fmt.Errorf("unpack module %s %s: %w", pin.Path, pin.Version, err)
	}
	return filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if entry.IsDir() {
			mode = 0o755
		}
		return os.Chmod(path, mode)
	})
}
