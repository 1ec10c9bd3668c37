package leftover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"
)

const idle = "idle"

// TestMain also is a process that does nothing, whatever its further arguments.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == idle {
		time.Sleep(time.Minute)
		return
	}
	os.Exit(m.Run())
}

// started is such a process, which nobody notes.
func started(t *testing.T, argument string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], idle, argument)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func runs(pid int) bool {
	stat, err := statOf(pid)
	return err == nil && stat.State != "Z"
}

// A run's own processes end with it, and nobody else's does: not one that has its
// directory in the command line, and not one that has got the id of one that ended.
func TestRemove(t *testing.T) {
	run := filepath.Join(t.TempDir(), "1")
	sandbox := filepath.Join(run, "1")
	state := filepath.Join(sandbox, State)
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	ours := exec.Command("sh", "-c", `"$0" "$1" & wait`, os.Args[0], idle)
	if err := Start(sandbox, ours); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ours.Process.Kill()
		_ = ours.Wait()
	})
	var child int
	for child == 0 {
		if pids, _ := children(ours.Process.Pid); len(pids) > 0 {
			child = pids[0]
		}
	}
	gofer := started(t, "--root="+state)
	editor, later, other := started(t, filepath.Join(sandbox, "runsc.log")), started(t, ""), started(t, "--root="+state+"/other")
	if err := os.WriteFile(note(sandbox, later.Process.Pid), []byte("another boot 1"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{"a": gofer.Process.Pid, "b": other.Process.Pid} {
		data, err := json.Marshal(map[string]any{"goferPid": pid, "sandbox": map[string]int{"pid": 0}})
		if err == nil {
			err = os.WriteFile(filepath.Join(state, name+".state"), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	container, reused := started(t, "container"), started(t, "container")
	for name, c := range map[string]struct{ pid, before int }{"c": {container.Process.Pid, 0}, "d": {reused.Process.Pid, 1}} {
		stat, err := statOf(c.pid)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(map[string]any{"init_process_pid": c.pid, "init_process_start": stat.Starttime - uint64(c.before)})
		if err == nil {
			err = errors.Join(os.Mkdir(filepath.Join(state, name), 0o755), os.WriteFile(filepath.Join(state, name, "state.json"), data, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if found := Processes(run); len(found) != 3 || found[container.Process.Pid] == "" || found[ours.Process.Pid] == "" || found[gofer.Process.Pid] == "" {
		t.Errorf("its processes are %d, %d and %d, and %v were found", ours.Process.Pid, gofer.Process.Pid, container.Process.Pid, found)
	}
	go func() { _ = gofer.Wait() }() // it is not a child of those that clean
	go func() { _ = container.Wait() }()
	if err := Remove(run); err != nil {
		t.Fatal(err)
	}
	for what, pid := range map[string]int{"the process": ours.Process.Pid, "what it had started": child, "the gofer": gofer.Process.Pid, "the container": container.Process.Pid} {
		if runs(pid) {
			t.Errorf("%s runs", what)
		}
	}
	for what, cmd := range map[string]*exec.Cmd{"an editor": editor, "a later process": later, "a runsc of somebody else": other, "one with the id of a container's": reused} {
		if !runs(cmd.Process.Pid) {
			t.Errorf("%s was ended", what)
		}
	}
	if _, err := os.Stat(run); !os.IsNotExist(err) {
		t.Errorf("the directory is there: %v", err)
	}
}

// A process that has ended is none, and its note goes.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := Run(dir, exec.Command("true")); err != nil {
		t.Fatal(err)
	}
	if notes, err := os.ReadDir(filepath.Join(dir, noted)); err != nil || len(notes) > 0 {
		t.Errorf("notes: %v, %v", notes, err)
	}
}

// The lock of a run is held as long as its process lives, whatever becomes garbage.
func TestARunThatLives(t *testing.T) {
	base := t.TempDir()
	dir, err := Claim(base)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // finalizers run after a collection
		runtime.GC()
	}
	var said []string
	if err := Clean(base, func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil || len(said) > 0 || filepath.Base(dir) != strconv.Itoa(os.Getpid()) {
		t.Errorf("the directory of a run that lives: %v, %q", err, said)
	}
	if err := claimed.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Clean(base, func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) || len(said) != 1 {
		t.Errorf("the directory of a run that has ended: %v, %q", err, said)
	}
}

// A run that has a copy of the repository in its directory takes that copy's runs along.
func TestRemoveACopy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "1")
	sandboxes, work := filepath.Join(dir, "s"), filepath.Join(dir, "repository", ".work")
	if err := errors.Join(os.MkdirAll(sandboxes, 0o755), os.MkdirAll(work, 0o755), os.Symlink(sandboxes, filepath.Join(work, "sandboxes"))); err != nil {
		t.Fatal(err)
	}
	sandbox := filepath.Join(sandboxes, "2", "1")
	ours := exec.Command(os.Args[0], idle)
	if err := Start(sandbox, ours); err != nil {
		t.Fatal(err)
	}
	go func() { _ = ours.Wait() }()
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); runs(ours.Process.Pid) || !os.IsNotExist(err) {
		t.Errorf("a sandbox's process runs: %v; its directory: %v", runs(ours.Process.Pid), err)
	}
}

// The cgroups of a sandbox go with it, in each hierarchy; others stay.
func TestRemoveCgroups(t *testing.T) {
	top, sandbox := t.TempDir(), filepath.Join(t.TempDir(), "1", "1")
	defer func(before string) { hierarchies = before }(hierarchies)
	hierarchies = top
	ours := []string{filepath.Join(top, "ours"), filepath.Join(top, "memory", "ours"), filepath.Join(top, "cpu", "ours")}
	others := filepath.Join(top, "memory", "others")
	for _, dir := range append(ours, others, sandbox, filepath.Join(top, "memory", "ours", "kubepods", "pod1")) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := NoteCgroup(sandbox, "ours"); err != nil {
		t.Fatal(err)
	}
	if err := Remove(filepath.Dir(sandbox)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range ours {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
	if _, err := os.Stat(others); err != nil {
		t.Error(err)
	}
}

// A note that names something else than one cgroup removes nothing.
func TestBadNoteOfACgroup(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../other", "*"} {
		sandbox := filepath.Join(t.TempDir(), "1")
		if err := os.MkdirAll(sandbox, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := NoteCgroup(sandbox, name); err != nil {
			t.Fatal(err)
		}
		if err := Remove(sandbox); err == nil {
			t.Errorf("a note of %q was followed", name)
		}
	}
}
