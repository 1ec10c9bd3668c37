package leftover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupNote is a file in the directory of a sandbox with the name of its cgroups.
const cgroupNote = "cgroup"

var cgroupName = regexp.MustCompile(`^[a-z0-9-]+$`)

// hierarchies is where that of cgroup v2 is mounted, or those of v1 below it.
var hierarchies = "/sys/fs/cgroup"

// NoteCgroup notes the name that the cgroups of a sandbox are going to have, at the top of
// each hierarchy: of a-z, 0-9 and hyphens.
func NoteCgroup(dir, name string) error {
	return os.WriteFile(filepath.Join(dir, cgroupNote), []byte(name), 0o644)
}

// removeCgroups removes the cgroups that were noted in a directory of a run, or in that of
// one sandbox, and whose processes have ended.
func removeCgroups(dir string) error {
	var failures error
	for _, pattern := range []string{cgroupNote, "*/" + cgroupNote} {
		notes, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, note := range notes {
			failures = errors.Join(failures, removeNoted(note))
		}
	}
	return failures
}

func removeNoted(note string) error {
	name, err := os.ReadFile(note)
	if err == nil && !cgroupName.Match(name) {
		err = fmt.Errorf("%s names no cgroup: %q", note, name)
	}
	if err != nil {
		return err
	}
	groups, _ := filepath.Glob(filepath.Join(hierarchies, "*", string(name)))
	for _, group := range append(groups, filepath.Join(hierarchies, string(name))) {
		err = errors.Join(err, removeCgroup(group))
	}
	return err
}

// emptying is how long the kernel may take to notice that a cgroup has no process any more.
const emptying = 5 * time.Second

// removeCgroup removes a cgroup and those in it.
func removeCgroup(group string) error {
	entries, err := os.ReadDir(group)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroup(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	for deadline := time.Now().Add(emptying); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Rmdir(group)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return &os.PathError{Op: "rmdir", Path: group, Err: err}
		}
	}
}
