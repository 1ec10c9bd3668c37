package blocker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/hint"
)

// A fix is recorded before it is made, so that it can be undone after a crash in
// between: Undo takes back what of the record it finds.

func (h *Host) recordFile(id string) string { return filepath.Join(h.Data, "fixes", id+".json") }

// record writes what a fix is about to do. A record that exists stays: it tells
// of the machine as it was before the first fix.
func (h *Host) record(id string, change any) error {
	name := h.recordFile(id)
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	aside, err := os.CreateTemp(filepath.Dir(name), ".tmp-")
	if err != nil {
		return err
	}
	_, err = aside.Write(append(data, '\n'))
	if err = errors.Join(err, aside.Sync(), aside.Close()); err == nil {
		err = os.Rename(aside.Name(), name)
	}
	if err != nil {
		os.Remove(aside.Name())
		return fmt.Errorf("record the fix, so that it can be undone: %w", err)
	}
	return nil
}

// recorded reads the record of a fix, if there is one.
func (h *Host) recorded(id string, change any) (bool, error) {
	name := h.recordFile(id)
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, change)
	}
	if err != nil {
		return false, hint.Add(fmt.Errorf("read what %s changed: %w", id, err), "look at %s, take the change back by hand and delete the file", name)
	}
	return true, nil
}

func (h *Host) forget(id string) error { return os.Remove(h.recordFile(id)) }
