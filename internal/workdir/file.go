package workdir

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/sys/atomicwriter"
)

// WriteFile replaces a file, or makes it and its directory.
func WriteFile(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return atomicwriter.WriteFile(name, data, 0o644)
}

// WriteJSON replaces a file by a value as indented JSON.
func WriteJSON(name string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(name, append(data, '\n'))
}

// LinkFile replaces a file by a hard link to another one, or by a copy where they are
// on two filesystems.
func LinkFile(from, to string) error {
	err := replace(to, func(temporary string) error { return os.Link(from, temporary) })
	if err == nil {
		return nil
	}
	return CopyFile(from, to, 0o755)
}

// Symlink replaces a file by a symbolic link.
func Symlink(target, name string) error {
	return replace(name, func(temporary string) error { return os.Symlink(target, temporary) })
}

// CopyFile replaces a file by a copy of another one.
func CopyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return replace(to, func(temporary string) error {
		out, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Chmod(mode), out.Close())
	})
}

// replace makes a directory entry beside the final one and renames it.
func replace(final string, make func(temporary string) error) error {
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(final), ".tmp-"+filepath.Base(final))
	defer os.Remove(temporary) // also where rename(2) finds two links to one file, and leaves both
	if err := make(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, final)
}
