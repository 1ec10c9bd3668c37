// Package journal records what is changed on the machine before it is changed, so
// that it can be taken back exactly: after a crash in between, after a SIGKILL, and
// not once more after a reboot.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/atomicwriter"

	"k3s9p/internal/hint"
)

// Change is a change of the machine. As JSON it is its own record: what Undo gets to
// know of the machine before.
type Change interface {
	// String says what is done, in the imperative.
	String() string
	Make() error
	// Undo takes back what is still there of the change, and nothing else. SameBoot
	// is false if the machine was started anew since: what a kernel forgets is gone.
	Undo(sameBoot bool) error
}

// Journal is a directory with a file per change.
type Journal struct{ Dir string }

// Make records a change, and makes it.
func (j Journal) Make(id string, c Change) error {
	if err := j.Record(id, c); err != nil {
		return err
	}
	return c.Make()
}

// Undo takes a change back, if it is recorded, and forgets it.
func Undo[C Change](j Journal, id string) error {
	var c C
	recorded, sameBoot, err := j.Read(id, &c)
	if err != nil || !recorded {
		return err
	}
	if err := c.Undo(sameBoot); err != nil {
		return err
	}
	return j.Forget(id)
}

// Again returns the change that is recorded, of this boot, or the given one. What is
// recorded will have been taken back when the change is made the next time.
func Again[C Change](j Journal, id string, otherwise C) C {
	var c C
	if recorded, sameBoot, err := j.Read(id, &c); err == nil && recorded && sameBoot {
		return c
	}
	return otherwise
}

// entry is what a file holds.
type entry struct {
	// Boot identifies the run of the kernel that the change was made in.
	Boot   string          `json:"boot"`
	Change json.RawMessage `json:"change"`
}

func (j Journal) file(id string) string { return filepath.Join(j.Dir, id+".json") }

// Has reports whether a change is recorded.
func (j Journal) Has(id string) bool {
	_, err := os.Stat(j.file(id))
	return err == nil
}

// Empty reports whether no change is recorded: a journal that cannot be read may hold
// some.
func (j Journal) Empty() bool {
	entries, err := os.ReadDir(j.Dir)
	return errors.Is(err, os.ErrNotExist) || err == nil && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return filepath.Ext(e.Name()) == ".json" })
}

// Record writes what is about to be changed. An entry of this boot stays: it tells
// of the machine as it was before the first change.
func (j Journal) Record(id string, change any) error {
	if there, err := j.read(id); err != nil {
		return err
	} else if there != nil && there.Boot == BootID() {
		return nil
	}
	data, err := json.Marshal(change)
	if err == nil {
		data, err = json.Marshal(entry{Boot: BootID(), Change: data})
	}
	if err == nil {
		err = os.MkdirAll(j.Dir, 0o755)
	}
	if err != nil {
		return err
	}
	if err := atomicwriter.WriteFile(j.file(id), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("record a change, so that it can be undone: %w", err)
	}
	return nil
}

// Read returns the change that is recorded, if one is. SameBoot says that the
// machine has not been started anew since: what a kernel forgets is still there.
func (j Journal) Read(id string, change any) (recorded, sameBoot bool, err error) {
	there, err := j.read(id)
	if err != nil || there == nil {
		return false, false, err
	}
	if err := json.Unmarshal(there.Change, change); err != nil {
		return false, false, j.damaged(id, err)
	}
	return true, there.Boot == BootID(), nil
}

func (j Journal) read(id string) (*entry, error) {
	data, err := os.ReadFile(j.file(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var there entry
	if err == nil {
		err = json.Unmarshal(data, &there)
	}
	if err != nil {
		return nil, j.damaged(id, err)
	}
	return &there, nil
}

func (j Journal) damaged(id string, err error) error {
	return hint.Add(fmt.Errorf("read what %s changed: %w", id, err), "look at %s, take the change back by hand and delete the file", j.file(id))
}

// Forget removes an entry whose change was taken back.
func (j Journal) Forget(id string) error {
	err := os.Remove(j.file(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// BootID identifies this run of the kernel (random(4)), or is empty where the
// kernel does not say: then every entry counts as one of this boot.
func BootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
