package blocker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var foreignPlaces = Blocker{
	ID:      "places",
	Title:   "directories in which the node may not make anything",
	Symptom: "mkdir /…permission denied",
	Source:  "programs have places below /run and /var built in, and the kubelet /dev/kmsg; who is not root may not make them, also in a user namespace",
	Remedy:  Machine,
	Check: func(_ context.Context, h *Host) (Answer, string) {
		foreign, err := unwritable(h.Places)
		switch {
		case foreign != nil:
			return Found, oneLine(err)
		case len(h.Places) == 0:
			return Fine, "the node makes nothing outside of its data directory"
		}
		return Fine, "files can be made in " + strings.Join(h.Places, ", ")
	},
	Decide: func(_ context.Context, d *decision) {
		foreign, _ := unwritable(d.h.Places)
		for i, dir := range foreign {
			d.mount(Cover{dir, filepath.Join(d.h.Data, "run", "cover", fmt.Sprint(i))})
		}
	},
}

// Covered reports whether a file is made in the node's mount namespace only, because its
// directory is covered there.
func (p *Plan) Covered(path string) bool {
	return slices.ContainsFunc(p.Changes, func(change Change) bool {
		c, ok := change.change.(Cover)
		return ok && strings.HasPrefix(path, c.Dir+"/")
	})
}

// unwritable are the directories in which no file can be made, each with why.
func unwritable(dirs []string) (foreign []string, why error) {
	for _, dir := range dirs {
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			foreign = append(foreign, dir)
			why = errors.Join(why, &os.PathError{Op: "write to", Path: dir, Err: err})
		}
	}
	return foreign, why
}

// Cover puts a tmpfs that has all that is in a directory over that directory.
type Cover struct {
	Dir     string
	Staging string // where the tmpfs is while it is filled
}

func (c Cover) String() string { return "cover " + c.Dir + " with a tmpfs that shows what is in it" }

func (c Cover) Make() error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Staging, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", c.Staging, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", c.Staging, err)
	}
	for _, entry := range entries {
		if err := show(entry, filepath.Join(c.Dir, entry.Name()), filepath.Join(c.Staging, entry.Name())); err != nil {
			return err
		}
	}
	if err := unix.Mount(c.Staging, c.Dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", c.Staging, c.Dir, err)
	}
	return unix.Unmount(c.Staging, unix.MNT_DETACH)
}

// show makes an entry of a directory appear elsewhere too.
func show(entry os.DirEntry, from, to string) error {
	if entry.Type()&os.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	var err error
	if entry.IsDir() {
		err = os.Mkdir(to, 0o755)
	} else {
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", from, to, err)
	}
	return nil
}
