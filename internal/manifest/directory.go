package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"
)

// File is what has become of a manifest.
type File struct {
	Name    string `json:"name"`
	Objects int    `json:"objects"`         // that are in the cluster because of it
	Error   string `json:"error,omitempty"` // why it is not applied, or not all of it
}

// Directory is a directory of manifests: its files named *.yaml, *.yml and *.json.
type Directory struct {
	path    string
	record  string
	cluster Cluster

	applied map[string]*applied // by the name of the file; it lasts
	seen    map[string]seen
	stale   map[Ref]int // for how many looks in a row an object has been in no manifest
}

// applied is what a manifest has brought into the cluster.
type applied struct {
	Digest  string `json:"digest"` // of the file, when all of it was applied
	Objects []Ref  `json:"objects"`
	Stale   []Ref  `json:"stale,omitempty"` // that it no longer holds, to be deleted
}

// seen is how a manifest was at the last look.
type seen struct {
	size     int64
	modified time.Time
	err      error
	tried    time.Time
}

// staleLooks is after how many looks in a row an object is deleted that is in no manifest
// any more. A file that is just being written, or replaced by an editor, lacks objects
// for a moment, and to make them again would not bring back what they held.
const staleLooks = 2

// again is how long after a failure a manifest is tried again that has not changed.
const again = 10 * time.Second

// Open returns the directory at path, which need not exist, with what the file record
// says of it.
func Open(path, record string, cluster Cluster) (*Directory, error) {
	d := &Directory{path: path, record: record, cluster: cluster, applied: make(map[string]*applied), seen: make(map[string]seen), stale: make(map[Ref]int)}
	data, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &d.applied)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was applied of %s: %w", path, err)
	}
	return d, nil
}

// Apply applies some of the files now, and deletes nothing: what the others need.
func (d *Directory) Apply(ctx context.Context, names ...string) error {
	known := make(kinds)
	var failures error
	for _, name := range names {
		if err := d.applyFile(ctx, known, name); err != nil {
			failures = errors.Join(failures, fmt.Errorf("apply %s: %w", filepath.Join(d.path, name), err))
		}
	}
	return errors.Join(failures, d.save())
}

// Sync brings the cluster to what the files say, and returns what has become of each. An
// object that is in none of them any more is deleted when the next look finds that too.
// It asks the cluster nothing where no file has changed. The error is about the
// directory; that of a file is with the file.
func (d *Directory) Sync(ctx context.Context) ([]File, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for manifests: %w", err)
	}
	known := make(kinds)
	changed := false
	there := make(map[string]bool)
	for _, entry := range entries {
		if name := entry.Name(); isManifest(name) && !entry.IsDir() {
			there[name] = true
			changed = d.syncFile(ctx, known, name) || changed
		}
	}
	for name, a := range d.applied {
		if !there[name] {
			delete(d.seen, name)
			a.Digest, a.Objects, a.Stale = "", nil, union(a.Stale, a.Objects) // it may come back
		}
	}
	pruned, failures := d.prune(ctx, known)
	for name, a := range d.applied {
		if !there[name] && len(a.Stale) == 0 {
			delete(d.applied, name)
		}
	}
	if changed || pruned {
		failures = errors.Join(failures, d.save())
	}
	return d.files(there), failures
}

func isManifest(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

// syncFile applies a manifest that is new or has changed, and reports whether it did.
func (d *Directory) syncFile(ctx context.Context, known kinds, name string) bool {
	info, err := os.Stat(filepath.Join(d.path, name))
	if err != nil {
		d.seen[name] = seen{err: err, tried: time.Now()}
		return false
	}
	last, ok := d.seen[name]
	if ok && last.size == info.Size() && last.modified.Equal(info.ModTime()) && (last.err == nil || time.Since(last.tried) < again) {
		return false
	}
	err = d.applyFile(ctx, known, name)
	if ctx.Err() != nil {
		return true
	}
	d.seen[name] = seen{info.Size(), info.ModTime(), err, time.Now()}
	return true
}

func (d *Directory) applyFile(ctx context.Context, known kinds, name string) error {
	text, err := os.ReadFile(filepath.Join(d.path, name))
	if err != nil {
		return err
	}
	a := d.applied[name]
	digest := fmt.Sprintf("%x", sha256.Sum256(text))
	if a != nil && a.Digest == digest {
		return nil
	}
	objects, err := Parse(text)
	if err != nil {
		return err
	}
	if a != nil && len(objects) == 0 && len(a.Objects) > 0 {
		return errors.New("it holds no objects any more; what it has brought stays until the file is removed")
	}
	if a == nil {
		a = new(applied)
		d.applied[name] = a
	}
	var refs []Ref
	var failures error
	for _, o := range objects {
		ref, err := d.cluster.apply(ctx, known, o)
		if err != nil {
			failures = errors.Join(failures, fmt.Errorf("line %d: %s: %w", o.Line, ref, err))
			continue
		}
		refs = append(refs, ref)
	}
	if failures != nil { // what is missing now may be what could not be applied
		a.Digest, a.Objects = "", union(a.Objects, refs)
		return failures
	}
	gone := slices.DeleteFunc(a.Objects, func(ref Ref) bool { return slices.Contains(refs, ref) })
	a.Digest, a.Objects, a.Stale = digest, refs, union(a.Stale, gone)
	return nil
}

// prune deletes what is stale and in no manifest, after all of them were applied: an
// object may have moved from one to another. See staleLooks. It reports whether there was any.
func (d *Directory) prune(ctx context.Context, known kinds) (bool, error) {
	var wanted []Ref
	for _, a := range d.applied {
		wanted = append(wanted, a.Objects...)
	}
	worked := false
	looks := make(map[Ref]int)
	var failures error
	for name, a := range d.applied {
		var left []Ref
		for _, ref := range slices.Backward(a.Stale) { // what came last may need the others
			worked = true
			if slices.Contains(wanted, ref) {
				continue
			}
			if looks[ref] = d.stale[ref] + 1; looks[ref] < staleLooks {
				left = append(left, ref)
				continue
			}
			if err := d.cluster.remove(ctx, known, ref); err != nil {
				failures = errors.Join(failures, fmt.Errorf("delete %s, which %s had brought: %w", ref, name, err))
				left = append(left, ref)
			}
		}
		slices.Reverse(left)
		a.Stale = left
	}
	d.stale = looks
	return worked, failures
}

func union(a, b []Ref) []Ref {
	all := slices.Clone(a)
	for _, ref := range b {
		if !slices.Contains(all, ref) {
			all = append(all, ref)
		}
	}
	return all
}

func (d *Directory) save() error {
	data, err := json.MarshalIndent(d.applied, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicwriter.WriteFile(d.record, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("record what was applied of %s: %w", d.path, err)
	}
	return nil
}

// files are those that are there, in the order of their names.
func (d *Directory) files(there map[string]bool) []File {
	var files []File
	for name := range there {
		f := File{Name: name}
		if a := d.applied[name]; a != nil {
			f.Objects = len(a.Objects)
		}
		if err := d.seen[name].err; err != nil {
			f.Error = err.Error()
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files
}
