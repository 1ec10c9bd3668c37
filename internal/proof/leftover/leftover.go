// Package leftover removes what test runs left that ended without a word: killed,
// or by a panic outside of a test.
//
// A run has a directory, named after its process, with a lock that it holds while it
// lives, and in it a directory for each sandbox. All that a sandbox has on the machine
// is below that directory: its root, its mounts (network namespaces among them), the ids of
// its processes (processes.go), and the names of its cgroups (cgroups.go).
package leftover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/gofrs/flock"

	"k3s9p/internal/rmtree"
)

const lockName = "lock"

// claimed is the lock of this process's run. A lock that nobody refers to is garbage:
// its file is closed when it is collected, and whoever cleans takes the run for ended.
var claimed *flock.Flock

// Claim makes the directory of a run below base, locked as long as this process lives.
func Claim(base string) (string, error) {
	dir := filepath.Join(base, strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	claimed = flock.New(filepath.Join(dir, lockName))
	ok, err := claimed.TryLock()
	if err != nil || !ok {
		return "", errors.Join(fmt.Errorf("lock %s", dir), err)
	}
	return dir, nil
}

// Clean removes what ended runs left below base, and says what it finds.
func Clean(base string, say func(format string, args ...any)) error {
	runs, err := filepath.Glob(filepath.Join(base, "*"))
	if err != nil {
		return err
	}
	var failures error
	for _, run := range runs {
		lock := flock.New(filepath.Join(run, lockName))
		alone, err := lock.TryLock()
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		if !alone {
			continue // it runs
		}
		if sandboxes, err := Sandboxes(run); err != nil {
			failures = errors.Join(failures, err)
		} else if len(sandboxes) > 0 {
			say("an earlier run was ended before it could clean up: removing %d sandboxes in %s", len(sandboxes), run)
		}
		failures = errors.Join(failures, Remove(run), lock.Unlock())
	}
	return failures
}

// WaitForRuns waits until no run lives below base: one that was told to end outlives the
// go command that started it.
func WaitForRuns(base string, within time.Duration) {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		runs, err := filepath.Glob(filepath.Join(base, "*", lockName))
		if err != nil || !slices.ContainsFunc(runs, held) {
			return
		}
	}
}

// held reports whether somebody has a lock.
func held(name string) bool {
	lock := flock.New(name)
	alone, err := lock.TryLock()
	_ = lock.Close()
	return err == nil && !alone
}

// Sandboxes are the directories of a run's sandboxes.
func Sandboxes(run string) ([]string, error) {
	entries, err := os.ReadDir(run)
	var found []string
	for _, entry := range entries {
		if entry.IsDir() {
			found = append(found, filepath.Join(run, entry.Name()))
		}
	}
	return found, err
}

// removeCopies removes what is left of the runs in copies of the repository, which are
// what a run of verify:proof has in its directory.
func removeCopies(dir string) error {
	copies, err := filepath.Glob(filepath.Join(dir, "*", ".work", "sandboxes"))
	for _, base := range copies {
		WaitForRuns(base, 10*time.Second) // they have been told to end
		err = errors.Join(err, Clean(base, func(string, ...any) {}))
	}
	return err
}

// NodeData is how the directory with the data of a node is called that runs on this
// machine itself, and Launcher the k3s9p that ends one and takes back what it changed.
const NodeData = "node"

var Launcher string

// endNodes ends such nodes in a directory of a run, or in that of one sandbox.
func endNodes(dir string) error {
	var failures error
	for _, pattern := range []string{NodeData, "*/" + NodeData} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, data := range found {
			output, err := exec.Command(Launcher, "--data-dir="+data, "down", "--purge").CombinedOutput()
			if err != nil {
				failures = errors.Join(failures, fmt.Errorf("end the node with its data in %s: %w: %s", data, err, output))
			}
		}
	}
	return failures
}

// Remove ends the processes that were started for a directory of a run, or of a sandbox,
// removes their cgroups, unmounts what is mounted below it and removes it.
func Remove(dir string) error {
	err := errors.Join(removeCopies(dir), endNodes(dir), kill(dir))
	if err == nil {
		err = removeCgroups(dir)
	}
	if err != nil {
		return err
	}
	return rmtree.Tree(dir)
}
