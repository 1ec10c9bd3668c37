package builder

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k3s9p/internal/bundle"
	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/hint"
	"k3s9p/internal/k3s"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// join makes one program of the parts of a set: the file that unpacks itself. It returns
// all sets, with that of the program, of which the parts have no outputs any more, and what
// the program lacks.
func (b *Builder) join(ctx context.Context, selection pin.Selection, chain record.Toolchain, sets []Compiled) ([]Compiled, []string, error) {
	set := selection.Parted
	parts, others := sets[:len(set.Config.Parts)], sets[len(set.Config.Parts):]
	trees, err := b.Sources(ctx, set)
	if err != nil {
		return nil, nil, err
	}
	upstream, err := b.readUpstream(set, trees)
	if err != nil {
		return nil, nil, err
	}
	entries, lacks, err := b.entries(ctx, set, selection.Sets[0], trees[set.Config.Module], upstream, parts)
	if err != nil {
		return nil, nil, err
	}
	archive, sum, err := b.archive(set, entries)
	if err != nil {
		return nil, nil, err
	}
	tree, err := b.layTree(trees[set.Config.Whole.Main], "whole", []string{sum}, func(tree string) error {
		return os.Link(archive, filepath.Join(tree, k3s.DataEmbed, sum+".tar.zst"))
	})
	if err != nil {
		return nil, nil, fmt.Errorf("lay out the sources of %s: %w", set.Config.Whole.Name, err)
	}
	replacements, err := pin.ReadReplacements()
	if err != nil {
		return nil, nil, err
	}
	tree, replaced, err := b.replace(ctx, tree, *set.Config.Whole, replacements)
	if err != nil {
		return nil, nil, err
	}
	whole, err := set.Derive(*set.Config.Whole, tree, upstream.Names)
	if err != nil {
		return nil, nil, err
	}
	whole = whole.With(replaced).Called(upstream.Version, pin.PatchDigest(selection.Sets[:len(parts)]...))
	made, err := b.Make(ctx, whole, chain)
	if err != nil {
		return nil, nil, err
	}
	if made.fresh {
		if err := b.try(ctx, whole, made); err != nil {
			return nil, nil, errors.Join(err, rmtree.Tree(made.Dir))
		}
	}
	if size := made.Outputs[0].Size; size > k3s.MaxSize {
		b.UI.Say("%s has %s, more than upstream's limit of %s", made.Outputs[0].Path, progress.Size(size), progress.Size(k3s.MaxSize))
	}
	for i := range parts {
		parts[i].Outputs = nil
	}
	return slices.Concat(parts, others, []Compiled{made}), lacks, nil
}

// entries are the files of the archive, and what it lacks.
func (b *Builder) entries(ctx context.Context, set, server *pin.Set, main string, upstream k3s.Upstream, parts []Compiled) ([]k3s.Entry, []string, error) {
	var lacks []string
	byName := make(map[string]k3s.Entry)
	add := func(e k3s.Entry) { byName[e.Name] = e }
	for _, input := range set.Config.Inputs {
		files, why, err := b.input(ctx, server, input)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", input.Name, err)
		}
		if why != "" {
			lacks = append(lacks, fmt.Sprintf("%s (%s)", input.What, why))
		}
		for _, file := range files {
			add(file)
		}
	}
	for _, manifest := range slices.Sorted(maps.Keys(upstream.Charts)) {
		lacks = append(lacks, fmt.Sprintf("the add-on of manifests/%s: nobody publishes checksums of its charts (%s)", manifest, strings.Join(upstream.Charts[manifest], ", ")))
	}
	for _, part := range parts {
		for _, output := range part.Outputs {
			add(k3s.Entry{Name: output.Path, File: part.File(output), Link: output.Link, Mode: 0o755})
		}
	}
	add(k3s.Entry{Name: "bin/check-config", File: filepath.Join(main, k3s.CheckConfig), Mode: 0o755})
	return slices.Collect(maps.Values(byName)), lacks, nil
}

// archive packs the entries, once, and returns the file and its SHA-256.
func (b *Builder) archive(set *pin.Set, entries []k3s.Entry) (string, string, error) {
	slices.SortFunc(entries, func(a, b k3s.Entry) int { return strings.Compare(a.Name, b.Name) })
	parts := []string{k3s.Format, bundle.Format()}
	for _, e := range entries {
		sum := ""
		if e.Link == "" {
			var err error
			if sum, _, err = digest.File(e.File); err != nil {
				return "", "", err
			}
		}
		parts = append(parts, e.Name, e.Link, e.Mode.String(), sum)
	}
	dir := b.Work(b.own("out"), set.Name+"-archive-"+digest.Of(parts...)[:16])
	file := filepath.Join(dir, "data.tar.zst")
	if sum, _, err := digest.File(file); err == nil {
		return file, sum, nil
	}
	step := b.UI.Step("%s: pack the archive", set.Name)
	sum, size, err := b.writeArchive(dir, entries)
	if err != nil {
		step.Fail()
		return "", "", fmt.Errorf("pack the archive of %s: %w", set.Name, err)
	}
	step.Done("%d files and links, %s", len(entries), progress.Size(size))
	return file, sum, nil
}

func (b *Builder) writeArchive(final string, entries []k3s.Entry) (string, int64, error) {
	dir, err := b.Temporary("archive")
	if err != nil {
		return "", 0, err
	}
	out, err := os.Create(filepath.Join(dir, "data.tar.zst"))
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	err = k3s.WriteArchive(io.MultiWriter(out, h), entries)
	info, statErr := out.Stat()
	if err := errors.Join(err, statErr, out.Close()); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), info.Size(), workdir.Publish(dir, final)
}

// try runs the program that was made: it has to unpack itself, to find that what it
// unpacked is right, and to report its version, and the server in it has to do the same.
func (b *Builder) try(ctx context.Context, whole *pin.Set, made Compiled) error {
	data, err := b.Temporary("try")
	if err != nil {
		return err
	}
	defer rmtree.Tree(data)
	program := made.File(made.Outputs[0])
	env := append(os.Environ(), "K3S_DATA_DIR="+data)
	for _, args := range [][]string{{program, "--version"}, {program, "ctr", "--version"}} {
		out, err := b.Run(ctx, command.Command{Dir: data, Env: env, Args: args})
		if err != nil {
			return fmt.Errorf("try %s: %w", strings.Join(args[1:], " "), err)
		}
		if len(args) == 2 && !strings.Contains(string(out), whole.Version()) {
			return fmt.Errorf("try %s %s: it says %q, not %s", whole.Name, args[1], out, whole.Version())
		}
	}
	inner := filepath.Join(data, "data", "current", "bin", "k3s")
	out, err := b.Run(ctx, command.Command{Dir: data, Env: env, Args: []string{inner, "--version"}})
	if err == nil && !strings.Contains(string(out), whole.Version()) {
		err = fmt.Errorf("it says %q, not %s", out, whole.Version())
	}
	if err != nil {
		return fmt.Errorf("try the server in %s: %w", whole.Name, err)
	}
	return nil
}

// inputTime is how long a server may take to begin its answer.
const inputTime = 10 * time.Second

// input fetches an archive that is no module, and returns its files, or why they are
// missing. A wrong sum is an error: somebody answers who should not.
func (b *Builder) input(ctx context.Context, server *pin.Set, input pin.Input) ([]k3s.Entry, string, error) {
	sum, err := server.Expand(input.Sum, "")
	if err != nil {
		return nil, "", err
	}
	url, err := server.Expand(input.URL, "")
	if err != nil {
		return nil, "", err
	}
	if b.Slim {
		return nil, "left out by -slim", nil
	}
	dir := b.Work("inputs", input.Name+"-"+sum)
	if _, err := os.Stat(dir); err != nil {
		step := b.UI.Step("fetch %s", input.Name)
		why, err := b.fetchInput(ctx, url, sum, dir)
		switch {
		case err != nil:
			step.Fail()
			return nil, "", err
		case why != "":
			step.Skip("%s", why)
			return nil, why, nil
		}
		step.Done("checked by its sha256")
	}
	files, err := entriesBelow(dir)
	return files, "", err
}

func (b *Builder) fetchInput(ctx context.Context, url, sum, final string) (string, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout, transport.TLSHandshakeTimeout = inputTime, inputTime
	limited, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(limited, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err.Error(), ctx.Err()
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Sprintf("%s: %s", url, response.Status), nil
	}
	dir, err := b.Temporary("input")
	if err != nil {
		return "", err
	}
	file, err := os.Create(filepath.Join(dir, "archive"))
	if err != nil {
		return "", err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(file, h), response.Body); err != nil {
		return fmt.Sprintf("%s: %v", url, err), ctx.Err()
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return "", hint.Add(fmt.Errorf("%s: checksum mismatch: what was fetched has sha256 %s, k3s names %s", url, got, sum), "mage build -slim does without it")
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	tree := filepath.Join(dir, "tree")
	if err := unpackInput(file, tree); err != nil {
		return "", fmt.Errorf("unpack %s: %w", url, err)
	}
	return "", workdir.Publish(tree, final)
}

// unpackInput writes the files and links of a tar to a new directory.
func unpackInput(file io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for archive := tar.NewReader(file); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			var out *os.File
			if out, err = root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, h.FileInfo().Mode().Perm()|0o600); err == nil {
				_, err = io.Copy(out, archive)
				err = errors.Join(err, out.Close())
			}
		default:
			err = fmt.Errorf("%s is neither a file nor a link", name)
		}
		if err != nil {
			return err
		}
	}
}

// entriesBelow are the files and links below a directory.
func entriesBelow(dir string) ([]k3s.Entry, error) {
	var all []k3s.Entry
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		e := k3s.Entry{Name: filepath.ToSlash(name), File: file, Mode: info.Mode().Perm()}
		if info.Mode()&fs.ModeSymlink != 0 {
			e.Link, err = os.Readlink(file)
		}
		all = append(all, e)
		return err
	})
	return all, err
}
