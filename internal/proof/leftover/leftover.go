// Package leftover removes what test runs left that ended without a word: killed,
// or by a panic outside of a test.
//
// A run has a directory, named after its process, with a lock that it holds while it
// lives, and in it a directory for each sandbox. All that a sandbox has on the machine
// is below that directory or names it: its root, its mounts (network namespaces among
// them), its processes.
package leftover

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

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

// Wait waits until no run is left below base: a run that was told to end outlives
// the go command that started it.
func Wait(base string, within time.Duration) {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if runs, err := os.ReadDir(base); err != nil || len(runs) == 0 {
			return
		}
	}
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

// Remove ends the processes that name a directory, unmounts what is mounted below it
// and removes it.
func Remove(dir string) error {
	if err := errors.Join(endNodes(dir), kill(dir)); err != nil {
		return err
	}
	return rmtree.Tree(dir)
}

// Processes are those, by id, whose command line names a directory, or something in it.
func Processes(dir string) map[int]string {
	found := make(map[int]string)
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(name)
		if err == nil && bytes.Contains(line, []byte(dir+"/")) {
			found[pid] = strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// kill ends the processes that name a directory, and waits for their end.
func kill(dir string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := Processes(dir)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of %s do not end: %v", dir, left)
		}
		for pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d (%s): %w", pid, left[pid], err)
			}
		}
	}
}
