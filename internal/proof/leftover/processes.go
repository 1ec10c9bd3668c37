package leftover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"k3s9p/internal/journal"
)

// noted is the directory, below that of a sandbox, with a file for each process that was
// started for it. The file is called by the process's id and says which process has it:
// ids are given again.
const noted = "processes"

// Start starts a command for a directory, and notes it.
func Start(dir string, cmd *exec.Cmd) error {
	if err := os.MkdirAll(filepath.Join(dir, noted), 0o755); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	id, err := identity(cmd.Process.Pid)
	if err != nil {
		return err
	}
	return os.WriteFile(note(dir, cmd.Process.Pid), []byte(id), 0o644)
}

// Wait waits for a command that Start has started, and forgets it.
func Wait(dir string, cmd *exec.Cmd) error {
	err := cmd.Wait()
	if forgetErr := os.Remove(note(dir, cmd.Process.Pid)); forgetErr != nil && !errors.Is(forgetErr, os.ErrNotExist) {
		err = errors.Join(err, forgetErr) // it may have been removed with the directory
	}
	return err
}

// Run starts a command for a directory and waits for its end.
func Run(dir string, cmd *exec.Cmd) error {
	if err := Start(dir, cmd); err != nil {
		return err
	}
	return Wait(dir, cmd)
}

func note(dir string, pid int) string { return filepath.Join(dir, noted, strconv.Itoa(pid)) }

// identity tells processes with the same id apart: by the boot, and the time since then
// at which the process started.
func identity(pid int) (string, error) {
	stat, err := statOf(pid)
	return fmt.Sprintf("%s %d", journal.BootID(), stat.Starttime), err
}

func statOf(pid int) (procfs.ProcStat, error) {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStat{}, err
	}
	return process.Stat()
}

// Processes are those that run and were started for a directory of a run, or of a
// sandbox: ids and command lines.
func Processes(dir string) map[int]string {
	found := make(map[int]string)
	for _, pattern := range []string{dir, filepath.Join(dir, "*")} {
		notes, _ := filepath.Glob(filepath.Join(pattern, noted, "*"))
		for _, name := range notes {
			pid, err := strconv.Atoi(filepath.Base(name))
			if err != nil {
				continue
			}
			data, err := os.ReadFile(name)
			if id, idErr := identity(pid); err == nil && idErr == nil && id == string(data) && !isZombie(pid) {
				found[pid] = strings.Join(commandLine(pid), " ")
			}
		}
		states, _ := filepath.Glob(filepath.Join(pattern, State, "*.state"))
		for _, name := range states {
			for _, pid := range inState(name) {
				if line := commandLine(pid); slices.Contains(line, "--root="+filepath.Dir(name)) {
					found[pid] = strings.Join(line, " ")
				}
			}
		}
		states, _ = filepath.Glob(filepath.Join(pattern, State, "*", "state.json"))
		for _, name := range states {
			if pid := inContainer(name); pid != 0 && !isZombie(pid) {
				found[pid] = strings.Join(commandLine(pid), " ")
			}
		}
	}
	return found
}

// State is the directory, below that of a sandbox, that its runsc has for itself.
const State = "state"

// inState are the processes that runsc has written down, which leave the group and the
// session of the runsc that starts them (gVisor runsc/container/container.go, and
// runsc/sandbox/sandbox.go). Each names runsc's directory by a flag: that tells one from
// another process with its id.
func inState(name string) []int {
	var state struct {
		Gofer   int `json:"goferPid"`
		Sandbox struct {
			PID int `json:"pid"`
		} `json:"sandbox"`
	}
	data, err := os.ReadFile(name)
	if err != nil || json.Unmarshal(data, &state) != nil {
		return nil // runsc has not written it to its end
	}
	return []int{state.Gofer, state.Sandbox.PID}
}

// inContainer is the first process of a container that runc has written down, with the time
// since the boot at which it started (opencontainers/runc libcontainer/container.go,
// BaseState); 0 if that has ended. The others of its process namespace end with it.
func inContainer(name string) int {
	var state struct {
		PID   int    `json:"init_process_pid"`
		Start uint64 `json:"init_process_start"`
	}
	data, err := os.ReadFile(name)
	if err != nil || json.Unmarshal(data, &state) != nil {
		return 0
	}
	if stat, err := statOf(state.PID); err != nil || stat.Starttime != state.Start {
		return 0
	}
	return state.PID
}

func commandLine(pid int) []string {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return nil
	}
	line, _ := process.CmdLine()
	return line
}

// isZombie reports whether a process has ended, and only its parent does not know yet.
func isZombie(pid int) bool {
	stat, err := statOf(pid)
	return err == nil && stat.State == "Z"
}

// kill ends the processes that were started for a directory, and those that they have
// started, and waits for their end.
func kill(dir string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := Processes(dir)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of %s do not end: %v", dir, left)
		}
		// A runsc that is just starting a sandbox has not written down yet which one.
		for pid := range left {
			if pids, err := children(pid); err == nil {
				for _, child := range pids {
					left[child] = "started by process " + strconv.Itoa(pid)
				}
			}
		}
		for pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d (%s): %w", pid, left[pid], err)
			}
		}
	}
}

// children of a process, all generations.
func children(pid int) (found []int, err error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	parents := map[int]bool{pid: true}
	for grown := true; grown; {
		grown = false
		for _, process := range all {
			stat, err := process.Stat()
			if err != nil || !parents[stat.PPID] || parents[process.PID] {
				continue
			}
			parents[process.PID], grown = true, true
			found = append(found, process.PID)
		}
	}
	return found, nil
}
