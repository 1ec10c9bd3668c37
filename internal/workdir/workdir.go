package workdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"k3s9p/internal/hint"
	"k3s9p/internal/rmtree"
)

// kept is how many outputs and trees of one name stay in .work besides the newest,
// so that going back to an earlier patch costs nothing.
const kept = 2

// Tree is a work tree of the repository.
type Tree struct {
	Root string // absolute
	// Other is the directory in dist/ of what is built for another architecture than
	// this machine's; empty otherwise.
	Other string
}

// Work is a path in .work/.
func (t Tree) Work(elem ...string) string {
	return filepath.Join(append([]string{t.Root, ".work"}, elem...)...)
}

// Dist is a path in dist/.
func (t Tree) Dist(elem ...string) string {
	return filepath.Join(append([]string{t.Root, "dist", t.Other}, elem...)...)
}

// Temporary makes a directory in .work/tmp.
func (t Tree) Temporary(name string) (string, error) {
	if err := os.MkdirAll(t.Work("tmp"), 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(t.Work("tmp"), name+"-")
}

// Publish moves a finished file or directory to its content-addressed place.
func Publish(temporary, final string) error {
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	if err := rmtree.Tree(final); err != nil {
		return err
	}
	return os.Rename(temporary, final)
}

// sweep removes what killed builds left. The caller holds the lock.
func (t Tree) sweep() error {
	if err := rmtree.Tree(t.Work("tmp")); err != nil {
		return err
	}
	for _, pattern := range []string{t.Dist(".tmp-*"), t.Dist("*", ".tmp-*"), filepath.Join(t.Root, "dist", "*", "*", ".tmp-*"), t.Work("*", ".tmp-*")} {
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

// Prune removes all but the newest entries of each name in a directory of .work;
// entries are called <name>-<digest>. Those in use are never removed.
func (t Tree) Prune(directory string, inUse []string) error {
	entries, err := os.ReadDir(t.Work(directory))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	byName := make(map[string][]os.FileInfo)
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || slices.Contains(inUse, t.Work(directory, entry.Name())) {
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
			if err := rmtree.Tree(t.Work(directory, info.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Writable fails early where dist/ or .work/ cannot be written: a cold build takes
// minutes.
func (t Tree) Writable() error {
	for _, dir := range []string{t.Work(), t.Dist()} {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			var probe *os.File
			if probe, err = os.CreateTemp(dir, ".tmp-probe-"); err == nil {
				err = errors.Join(probe.Close(), os.Remove(probe.Name()))
			}
		}
		if err != nil {
			return hint.Add(fmt.Errorf("%s cannot be written: %w", dir, err), "nothing was built; make the directory writable, or work on a copy of the repository")
		}
	}
	return nil
}

// ExplainNoSpace adds what to do to an error about a full disk, also one that only
// the output of a command tells of.
func (t Tree) ExplainNoSpace(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "no space left on device") {
		return hint.Add(fmt.Errorf("the disk is full: %w", err),
			"a cold build needs about 6 GB in %s, the Go build cache and the module cache; nothing in dist/ is half-written, and mage clean empties .work", t.Work())
	}
	return err
}
