package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"k3s9p/internal/blocker"
	"k3s9p/internal/hint"
	"k3s9p/internal/manifest"
	"k3s9p/internal/supervisor"
)

// Phase is what a node as a whole is doing.
type Phase string

const (
	Starting Phase = "starting"
	Running  Phase = "running"
	Stopping Phase = "stopping"
	Stopped  Phase = "stopped"
	Killed   Phase = "killed" // it ended without cleaning up
)

// State is what a node says of itself.
type State struct {
	Phase   Phase     `json:"phase"`
	DataDir string    `json:"dataDir"`
	PID     int       `json:"pid,omitempty"` // of the supervisor
	Memory            // of the supervisor
	Since   time.Time `json:"since,omitzero"`
	Version string    `json:"version,omitempty"`
	Cluster *Cluster  `json:"cluster,omitempty"`
	Server  string    `json:"server,omitempty"`
	// Address is where other nodes reach this one's machine.
	Address string `json:"address,omitempty"`
	// Rootless says that the node is in namespaces of its own.
	Rootless bool      `json:"rootless,omitempty"`
	Programs []Program `json:"programs,omitempty"`
	AddOns   []AddOn   `json:"addOns,omitempty"`
	// Manifests are the files in the directory of manifests.
	Manifests []manifest.File `json:"manifests,omitempty"`
	// Plan is what was found out about this machine, and what was done about it.
	Plan *blocker.Plan `json:"plan,omitempty"`
}

// Program is one of a node's programs.
type Program struct {
	supervisor.State
	Memory
}

// Memory of a process that is resident, in bytes, and the same with its proportional
// share of what several processes use (PSS, proc_pid_smaps(5)); 0 where the kernel
// does not say.
type Memory struct {
	RSS int64 `json:"rss,omitempty"`
	PSS int64 `json:"pss,omitempty"`
}

// save writes what status reads.
func (n *Node) save() {
	data, err := json.MarshalIndent(n.state, "", "  ")
	if err == nil {
		err = writeFile(n.paths.state(), append(data, '\n'), 0o644)
	}
	if err != nil {
		n.log.Warn("write the state of the node", "error", err)
	}
}

// note changes what the node says of itself.
func (n *Node) note(change func(*State)) {
	n.saving.Lock()
	defer n.saving.Unlock()
	change(&n.state)
	n.save()
}

// noteAddOn says how an add-on is done, if that has changed.
func (n *Node) noteAddOn(a AddOn) {
	n.saving.Lock()
	defer n.saving.Unlock()
	i := slices.IndexFunc(n.state.AddOns, func(other AddOn) bool { return other.Name == a.Name })
	if i >= 0 && n.state.AddOns[i] != a {
		n.state.AddOns[i] = a
		n.save()
	}
}

// Status reads what a node says of itself, and looks whether that is still so.
func Status(dataDir string) (State, error) {
	p := Paths{dataDir}
	if err := p.check(); err != nil {
		return State{}, err
	}
	s := State{Phase: Stopped, DataDir: dataDir}
	c, err := readCluster(p)
	if err != nil || c == nil {
		return s, err
	}
	s.Cluster = c
	running, err := p.running()
	if err != nil {
		return s, err
	}
	data, err := os.ReadFile(p.state())
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the state of the node: %w", err)
	}
	if !running {
		s.Phase, s.PID = Killed, 0
		for i := range s.Programs {
			s.Programs[i].PID = 0
		}
		return s, nil
	}
	s.Memory = MemoryOf(s.PID)
	for i := range s.Programs {
		s.Programs[i].Memory = MemoryOf(s.Programs[i].PID)
	}
	return s, nil
}

// running reports whether somebody holds the node's lock.
func (p Paths) running() (bool, error) {
	if _, err := os.Stat(p.lock()); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	lock := flock.New(p.lock())
	free, err := lock.TryRLock()
	if errors.Is(err, os.ErrPermission) {
		return false, hint.Add(fmt.Errorf("the cluster in %s belongs to root", p.Data), "run it again with sudo")
	}
	if err != nil {
		return false, fmt.Errorf("look whether the node in %s runs: %w", p.Data, err)
	}
	defer lock.Close()
	return !free, nil
}

// supervisorOf is the process id of the node that runs, or 0.
func supervisorOf(p Paths) int {
	var s State
	data, err := os.ReadFile(p.state())
	if err != nil || json.Unmarshal(data, &s) != nil || s.PID <= 1 {
		return 0
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.PID))
	if err != nil || !bytes.HasPrefix(line, []byte(supervisorName+"\x00")) {
		return 0
	}
	return s.PID
}

// MemoryOf is the memory of a process that this one sees. It reads
// /proc/PID/smaps_rollup, or statm where there is none.
func MemoryOf(pid int) (m Memory) {
	if pid == 0 {
		return m
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)); err == nil {
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kilobytes, _ := strconv.ParseInt(fields[1], 10, 64)
			switch fields[0] {
			case "Rss:":
				m.RSS = kilobytes << 10
			case "Pss:":
				m.PSS = kilobytes << 10
			}
		}
		return m
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return m
	}
	if fields := strings.Fields(string(data)); len(fields) > 1 {
		pages, _ := strconv.ParseInt(fields[1], 10, 64)
		m.RSS = pages * int64(os.Getpagesize())
	}
	return m
}

// ErrRunning is wrapped by the error about a node that runs already.
var ErrRunning = errors.New("the node runs already")

func runningError(p Paths) error {
	return hint.Add(fmt.Errorf("%w, with its data in %s", ErrRunning, p.Data), "k3s9p status shows it, k3s9p down stops it")
}
