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
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"

	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/workdir"
)

// downloading begins a line in which the go command says what it fetches.
const downloading = "go: downloading "

// downloaded is one object of go mod download -json.
type downloaded struct {
	Path, Version, Error, Zip, Sum string
}

// Download fetches all modules of a set, checked by its go.sum, so that
// compiling needs no network. It returns the zips by module path. Modules that
// were fetched and checked before, and are still in the module cache, are not
// asked for again.
func (b *Builder) Download(ctx context.Context, set *pin.Set, step *progress.Step) (map[string]string, error) {
	goMod, err := b.withoutLocal(set)
	if err != nil {
		return nil, err
	}
	cached := b.fetchedName(set, goMod)
	if zips := readFetched(cached); zips != nil {
		return zips, nil
	}
	download := b.downloadNow
	switch {
	case set.Main != nil:
		download = b.downloadNeeded
	case len(set.Config.Parts) > 0:
		if err := b.ask(ctx, set); err != nil {
			return nil, err
		}
	}
	zips, err := download(ctx, set, goMod, step)
	if err != nil {
		return nil, err
	}
	return zips, workdir.WriteJSON(cached, zips)
}

// fetch is Download with a line of progress, where there is something to fetch. That the
// proxy does not give a part of k3s is no failure yet: there may be another distribution.
func (b *Builder) fetch(ctx context.Context, set *pin.Set) (map[string]string, error) {
	goMod, err := b.withoutLocal(set)
	if err != nil {
		return nil, err
	}
	if zips := readFetched(b.fetchedName(set, goMod)); zips != nil {
		return zips, nil
	}
	step := b.UI.Step("%s: fetch the pinned modules", set.Name)
	zips, err := b.Download(ctx, set, step)
	var unavailable *gotool.Unavailable
	switch {
	case err == nil:
		step.Done("%d modules, all checked by go.sum", len(zips))
	case errors.As(err, &unavailable) && (set.Main != nil || len(set.Config.Parts) > 0):
		step.Skip("%s", unavailable.Short())
	default:
		step.Fail()
	}
	return zips, err
}

// fetchedName is the file of .work that lists the modules that were fetched for a set.
func (b *Builder) fetchedName(set *pin.Set, goMod []byte) string {
	parts := []string{string(goMod), string(set.GoSum)}
	if set.Main != nil {
		parts = append(parts, filepath.Base(set.Dir), strings.Join(set.Config.Tags, ","))
		parts = append(parts, packagesOf(set.Config.Programs)...)
	}
	return b.Work("mod", "fetched."+set.Name+"-"+digest.Of(parts...)[:16])
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

// withoutLocal is the go.mod of a set with the modules that local directories stand in
// for replaced by these, so that nobody asks a proxy for them.
func (b *Builder) withoutLocal(set *pin.Set) ([]byte, error) {
	trees := make(map[string]string)
	for _, series := range set.Series {
		if series.Local == nil {
			continue
		}
		tree, err := b.StockTree(series, "")
		if err != nil {
			return nil, err
		}
		trees[series.Pin.Imported()] = tree
	}
	return set.GoModWith(trees)
}

func (b *Builder) downloadNow(ctx context.Context, set *pin.Set, goMod []byte, step *progress.Step) (map[string]string, error) {
	// go mod download adds sums that are missing. Here a missing sum is an error,
	// so it works on a copy, which must not change.
	dir, err := b.Temporary("download-" + set.Name)
	if err != nil {
		return nil, err
	}
	modfile := filepath.Join(dir, "go.mod")
	sumfile := filepath.Join(dir, "go.sum")
	if err := errors.Join(os.WriteFile(modfile, goMod, 0o644), os.WriteFile(sumfile, set.GoSum, 0o644)); err != nil {
		return nil, err
	}
	fetched := 0
	out, runErr := b.Run(ctx, command.Command{
		Dir:  set.Dir,
		Env:  b.Env(false),
		Args: []string{"go", "mod", "download", "-modfile=" + modfile, "-json"},
		Line: func(line string) {
			if name, ok := strings.CutPrefix(line, downloading); ok {
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
			return nil, gotool.ModuleError(set.Place(), m.Path+" "+m.Version, m.Error)
		}
		zips[m.Path] = m.Zip
	}
	if runErr != nil {
		return nil, gotool.ModuleError(set.Place(), "", strings.Join(command.Stderr(runErr), "\n"))
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

// downloadNeeded fetches the modules that the programs of a part are made of. What else
// the go.mod of its main module names, for other systems and for tests, is not asked for:
// a proxy may refuse it.
func (b *Builder) downloadNeeded(ctx context.Context, set *pin.Set, goMod []byte, step *progress.Step) (map[string]string, error) {
	dir, err := b.Temporary("download-" + set.Name)
	if err != nil {
		return nil, err
	}
	modfile := filepath.Join(dir, "go.mod")
	if err := errors.Join(os.WriteFile(modfile, goMod, 0o644), os.WriteFile(filepath.Join(dir, "go.sum"), set.GoSum, 0o644)); err != nil {
		return nil, err
	}
	args := []string{"go", "list", "-modfile=" + modfile, "-tags=" + strings.Join(set.Config.Tags, ","), "-deps",
		"-f", "{{with .Module}}{{with .Replace}}{{.Path}} {{.Version}}{{else}}{{.Path}} {{.Version}}{{end}}{{end}}"}
	args = append(args, packagesOf(set.Config.Programs)...)
	fetched := 0
	out, err := b.Run(ctx, command.Command{Dir: set.Dir, Env: b.Env(set.Config.CGO), Args: args, Line: func(line string) {
		if name, ok := strings.CutPrefix(line, downloading); ok {
			fetched++
			step.Note("%d modules, %s", fetched, name)
		}
	}, Noise: func(line string) bool { return strings.HasPrefix(line, downloading) }})
	if ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		return nil, gotool.ModuleError(set.Place(), "", strings.Join(command.Stderr(err), "\n"))
	}
	cache, err := b.Run(ctx, command.Command{Dir: set.Dir, Env: b.Env(false), Args: []string{"go", "env", "GOMODCACHE"}})
	if err != nil {
		return nil, err
	}
	zips := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 2 { // the main module, and directories, have no version
			continue
		}
		path, pathErr := module.EscapePath(fields[0])
		version, versionErr := module.EscapeVersion(fields[1])
		if err := errors.Join(pathErr, versionErr); err != nil {
			return nil, err
		}
		zips[fields[0]] = filepath.Join(strings.TrimSpace(string(cache)), "cache", "download", path, "@v", version+".zip")
	}
	return zips, nil
}

// DownloadOne fetches one module, and returns its zip with its sum. A pin without a sum
// is checked as the go command does without a go.sum, by GOSUMDB.
func (b *Builder) DownloadOne(ctx context.Context, p pin.Pin) (zip, sum string, err error) {
	dir, err := b.Temporary("download")
	if err != nil {
		return "", "", err
	}
	env := b.Env(false)
	if p.Sum != "" {
		env = append(env, "GONOSUMDB=*")
	}
	out, runErr := b.Run(ctx, command.Command{Dir: dir, Env: env, Args: []string{"go", "mod", "download", "-json", p.Path + "@" + p.Version}})
	var m downloaded
	if err := json.Unmarshal(out, &m); err == nil && m.Error != "" {
		return "", "", gotool.ModuleError("", p.Path+" "+p.Version, m.Error)
	} else if err := errors.Join(runErr, err); err != nil {
		return "", "", fmt.Errorf("fetch module %s %s: %w", p.Path, p.Version, err)
	}
	return m.Zip, m.Sum, nil
}

// ask asks for the go.mod of the module that a set is named after, and for nothing else.
// Where k3s is refused, its forks are too: this is the one that an error should name, and
// one question is quicker than all of them. What is fetched is checked later, by go.sum.
func (b *Builder) ask(ctx context.Context, set *pin.Set) error {
	main := set.Pins[set.Config.Module]
	for _, series := range set.Series {
		if series.Pin.Path == main.Path && series.Local != nil {
			return nil
		}
	}
	dir, err := b.Temporary("ask")
	if err != nil {
		return err
	}
	_, err = b.Run(ctx, command.Command{Dir: dir, Env: append(b.Env(false), "GONOSUMDB=*"), Args: []string{"go", "list", "-m", main.Path + "@" + main.Version}})
	if err != nil && ctx.Err() == nil {
		return gotool.ModuleError(set.Place(), main.Path+" "+main.Version, strings.Join(command.Stderr(err), "\n"))
	}
	return err
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

// Flatten makes one file name of a module path.
func Flatten(path string) string {
	name := []byte(path)
	for i, c := range name {
		if c == '/' {
			name[i] = '+'
		}
	}
	return string(name)
}

// StockTree unpacks a module as it is, once, and returns where.
func (b *Builder) StockTree(series pin.PinnedSeries, zipFile string) (string, error) {
	final := b.Work("stock", Flatten(series.Pin.Path)+"@"+series.Pin.Version+"-"+digest.Of(pin.TreeFormat, series.Pin.Sum)[:12])
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tree, err := b.Temporary("stock")
	if err != nil {
		return "", err
	}
	if err := Extract(series, zipFile, tree); err != nil {
		return "", err
	}
	return final, workdir.Publish(tree, final)
}

// StockSources are the trees of the modules of a set that have a series, without the
// patches, by module path.
func (b *Builder) StockSources(ctx context.Context, set *pin.Set) (map[string]string, error) {
	step := b.UI.Step("%s: unpack the stock sources", set.Name)
	zips, err := b.Download(ctx, set, step)
	if err != nil {
		step.Fail()
		return nil, err
	}
	trees := make(map[string]string)
	for _, series := range set.Series {
		tree, err := b.StockTree(series, zips[series.Pin.Path])
		if err != nil {
			step.Fail()
			return nil, err
		}
		trees[series.Pin.Imported()] = tree
	}
	step.Done("")
	return trees, nil
}

// Extract writes the source of a module, from its zip or from the directory that
// stands in for it, to a new tree.
func Extract(series pin.PinnedSeries, zipFile, tree string) error {
	switch {
	case series.Local != nil:
		return extractLocal(series.Pin, series.Local.Dir, tree)
	case zipFile == "":
		return fmt.Errorf("go mod download gave no zip for %s", series.Pin.Path)
	}
	return extractZip(series.Pin, zipFile, tree)
}

// extractZip unpacks a module zip to dir as a writable tree, after comparing it with
// the pin: the go command trusts the module cache, this does not.
func extractZip(p pin.Pin, zipFile, dir string) error {
	sum, err := dirhash.HashZip(zipFile, dirhash.Hash1)
	if err != nil {
		return fmt.Errorf("module %s %s: %w", p.Path, p.Version, err)
	}
	if sum != p.Sum {
		return hint.Add(fmt.Errorf("module %s %s: checksum mismatch: %s has %s, go.sum says %s", p.Path, p.Version, zipFile, sum, p.Sum),
			"the module cache was changed: go clean -modcache")
	}
	if err := zip.Unzip(dir, module.Version{Path: p.Path, Version: p.Version}, zipFile); err != nil {
		return fmt.Errorf("unpack module %s %s: %w", p.Path, p.Version, err)
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

// extractLocal writes the files that the module has of a directory to a new tree.
func extractLocal(p pin.Pin, from, tree string) error {
	file := filepath.Join(filepath.Dir(tree), filepath.Base(tree)+".zip")
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	err = zip.CreateFromDir(out, module.Version{Path: p.Path, Version: p.Version}, from)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return extractZip(p, file, tree)
}
