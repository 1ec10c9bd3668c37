package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k3s9p/internal/probe"
	"k3s9p/internal/userns"
)

// cgroup is the parent of the cgroups of all pods, in each hierarchy.
const cgroup = "/k3s9p"

// cgroupsChange makes one of this name in each hierarchy; the kubelet demands that it
// exists.
type cgroupsChange struct {
	Name string `json:"name"`
	// Delegation is the cgroup that it is in, if it is not the first one.
	Delegation *delegation `json:"delegation,omitempty"`
}

// newCgroupsChange makes them where this process, in namespaces of its own or not, has
// cgroups.
func newCgroupsChange() (cgroupsChange, error) {
	c := cgroupsChange{Name: cgroup}
	if dir := userns.Cgroup(); dir != "" {
		inode, err := inodeOf(probe.CgroupRoot)
		if err != nil {
			return c, err
		}
		c.Delegation = &delegation{dir, inode}
	}
	return c, nil
}

func (c cgroupsChange) String() string {
	if c.Delegation != nil {
		return c.Delegation.String() + ", and make the cgroup " + c.Name + " beside it"
	}
	return "make the cgroup " + c.Name + " in each hierarchy"
}

// directories are those of the cgroup, as this process sees them.
func (c cgroupsChange) directories() []string {
	if c.Delegation == nil {
		return cgroupDirectories(c.Name)
	}
	if dir := c.Delegation.here(); dir != "" {
		return []string{dir + c.Name}
	}
	return nil
}

func (c cgroupsChange) Make() error {
	// What a killed node has left whose mount namespace alone showed it has no processes.
	if err := removeDirectories(cgroupsBelow(c.directories())); err != nil {
		return err
	}
	if c.Delegation != nil {
		if err := c.Delegation.vacate(); err != nil {
			return err
		}
	}
	if v2, err := unified(); err != nil {
		return err
	} else if v2 {
		return enableControllers()
	}
	return makeInHierarchies()
}

// makeInHierarchies makes it in each hierarchy of cgroup v1.
func makeInHierarchies() error {
	hierarchies, err := os.ReadDir(probe.CgroupRoot)
	if err != nil {
		return err
	}
	made := 0
	for _, hierarchy := range hierarchies {
		dir := filepath.Join(probe.CgroupRoot, hierarchy.Name())
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() {
			continue
		}
		if err := os.Mkdir(dir+cgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make a cgroup: %w", err)
		}
		// A new cpuset has no processors until it is told (kernel documentation,
		// admin-guide/cgroup-v1/cpusets).
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
				if err := os.WriteFile(filepath.Join(dir+cgroup, file), value, 0o644); err != nil {
					return fmt.Errorf("give a cgroup its processors: %w", err)
				}
			}
		}
		made++
	}
	if made == 0 {
		return fmt.Errorf("there is no hierarchy of cgroups in %s", probe.CgroupRoot)
	}
	return nil
}

// unified reports whether cgroup v2 is what /sys/fs/cgroup has.
func unified() (bool, error) {
	v1, err := probe.CgroupV1()
	return !v1, err
}

// enableControllers makes the cgroup of cgroup v2 and hands it the controllers that
// its parent has (kernel documentation, admin-guide/cgroup-v2, "Controlling
// Controllers").
func enableControllers() error {
	controllers, err := os.ReadFile(filepath.Join(probe.CgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(probe.CgroupRoot+cgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	for _, dir := range []string{probe.CgroupRoot, probe.CgroupRoot + cgroup} {
		for _, controller := range strings.Fields(string(controllers)) {
			// Where processes are in the parent this is refused; the kubelet says
			// what it lacks then.
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		}
	}
	return nil
}

// cgroupDirectories are the directories of a cgroup, one per hierarchy.
func cgroupDirectories(name string) []string {
	dirs, _ := filepath.Glob(filepath.Join(probe.CgroupRoot, "*"+name))
	if _, err := os.Stat(probe.CgroupRoot + name); err == nil {
		dirs = append(dirs, probe.CgroupRoot+name)
	}
	return dirs
}

// nodeCgroups are the cgroups that this node has made since the machine was started,
// and those in them, outer ones first.
func nodeCgroups(p Paths) []string {
	var change cgroupsChange
	recorded, sameBoot, err := p.journal().Read(cgroupsRecord, &change)
	if err != nil || !recorded || !sameBoot {
		return nil
	}
	return cgroupsBelow(change.directories())
}

// cgroupsBelow are the given cgroups and all in them, outer ones first.
func cgroupsBelow(roots []string) []string {
	var dirs []string
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	return dirs
}

// Undo removes them, innermost first. Their processes have to have ended; the kernel
// may need a moment to see that.
func (c cgroupsChange) Undo(sameBoot bool) error {
	if !sameBoot {
		return nil
	}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		failures := removeDirectories(cgroupsBelow(c.directories()))
		if failures == nil && c.Delegation != nil {
			failures = c.Delegation.restore()
		}
		if failures == nil || time.Now().After(deadline) {
			return failures
		}
	}
}

// removeDirectories removes directories of which the outer ones come first.
func removeDirectories(dirs []string) error {
	var failures error
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			failures = errors.Join(failures, err)
		}
	}
	return failures
}
