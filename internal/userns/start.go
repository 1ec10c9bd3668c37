package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/reexec"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// Variables of the environment of a process that was started in namespaces of its own.
const (
	oneIDVariable  = "K3S9P_ONE_ID" // why it has one user and one group
	cgroupVariable = "K3S9P_CGROUP" // the cgroup that is the root of its cgroup namespace
)

// WhyOneID says why this process, in namespaces of its own, has one user and one group.
func WhyOneID() string { return os.Getenv(oneIDVariable) }

// Start starts this program in namespaces of its own. Ids are the same inside and outside
// where this process may map more than its own. Otherwise its own becomes root's, and
// those are added that newuidmap(1) grants; where it grants none, [WhyOneID] says why.
//
// A cgroup namespace is among them where there is a [Delegated] cgroup.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	a := cmd.SysProcAttr
	a.Cloneflags |= namespaces
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if delegated, err := Delegated(); err == nil {
		a.Cloneflags |= unix.CLONE_NEWCGROUP
		cmd.Env = append(cmd.Env, cgroupVariable+"="+delegated)
	}
	return startMapped(cmd)
}

// startMapped starts a command whose attributes have a user namespace of its own.
func startMapped(cmd *exec.Cmd) (err error) {
	a := cmd.SysProcAttr
	if mapsAll() {
		a.GidMappingsEnableSetgroups = true
		if a.UidMappings, err = mapped(usersFile); err != nil {
			return err
		}
		if a.GidMappings, err = mapped(groupsFile); err != nil {
			return err
		}
		return cmd.Start()
	}
	granted, why := findSubordinate()
	if why == nil {
		return granted.start(cmd)
	}
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	cmd.Env = append(cmd.Env, oneIDVariable+"="+why.Error())
	return cmd.Start()
}

// subordinate are the ids that this user may map besides their own (subuid(5)), as the
// arguments of the programs that do it.
type subordinate struct{ users, groups []string }

// findSubordinate returns an error that says why there are none.
func findSubordinate() (s subordinate, err error) {
	// The two programs have privileges of their own, and who has got a mapping gets its
	// capabilities with another exec: prctl(2) PR_SET_NO_NEW_PRIVS forbids both.
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && set == 1 {
		return s, errors.New("no new privileges are allowed to this process, and newuidmap would have some")
	}
	for _, name := range []string{newUIDMap, newGIDMap} {
		if _, err := exec.LookPath(name); err != nil {
			return s, fmt.Errorf("%w (Debian's package uidmap has it)", err)
		}
	}
	users, err := user.CurrentUserSubUIDs()
	if err != nil {
		return s, fmt.Errorf("look for further users in /etc/subuid: %w", err)
	}
	groups, err := user.CurrentUserSubGIDs()
	if err != nil {
		return s, fmt.Errorf("look for further groups in /etc/subgid: %w", err)
	}
	if len(users) == 0 || len(groups) == 0 {
		return s, fmt.Errorf("/etc/subuid and /etc/subgid do not both grant user %d a range", os.Geteuid())
	}
	return subordinate{inside(os.Geteuid(), users), inside(os.Getegid(), groups)}, nil
}

const (
	newUIDMap = "newuidmap"
	newGIDMap = "newgidmap"
)

// inside are triples of ids inside, ids outside and counts: an id becomes root's, and
// those behind it are those of the ranges.
func inside(own int, ranges []user.SubID) []string {
	triples := []string{"0", strconv.Itoa(own), "1"}
	next := int64(1)
	for _, r := range ranges {
		if count := min(r.Count, IDs-next); count > 0 {
			triples = append(triples, strconv.FormatInt(next, 10), strconv.FormatInt(r.SubID, 10), strconv.FormatInt(count, 10))
			next += count
		}
	}
	return triples
}

// awaitName is the name of a process that waits until its ids are mapped.
const awaitName = "k3s9p-ids"

func init() { reexec.Register(awaitName, await) }

// start starts a command that waits until its ids are mapped: a process has capabilities
// in its user namespace if it was root there at its last exec (capabilities(7)).
func (s subordinate) start(cmd *exec.Cmd) error {
	mapped, done, err := os.Pipe()
	if err != nil {
		return err
	}
	defer done.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles[:len(cmd.ExtraFiles):len(cmd.ExtraFiles)], mapped)
	cmd.Path, cmd.Args = reexec.Self(), append([]string{awaitName, strconv.Itoa(2 + len(cmd.ExtraFiles))}, cmd.Args...)
	err = cmd.Start()
	mapped.Close()
	if err != nil {
		return err
	}
	why, err := s.apply(cmd.Process.Pid)
	if err == nil {
		_, err = io.WriteString(done, why+"\n")
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("map the ids of a process: %w", err)
	}
	return nil
}

// apply maps the ids of a process. Where the programs refuse it is one id, and why.
func (s subordinate) apply(pid int) (why string, err error) {
	tables := fmt.Sprintf("/proc/%d/", pid)
	for _, m := range []struct {
		program string
		triples []string
		file    string
		own     int
	}{{newGIDMap, s.groups, "gid_map", os.Getegid()}, {newUIDMap, s.users, "uid_map", os.Geteuid()}} {
		if why == "" {
			output, err := exec.Command(m.program, append([]string{strconv.Itoa(pid)}, m.triples...)...).CombinedOutput()
			if err == nil {
				continue
			}
			why = fmt.Sprintf("%s: %v: %s", m.program, err, strings.Join(strings.Fields(string(output)), " "))
		}
		if m.file == "gid_map" { // without privileges that has to be given up before (user_namespaces(7))
			if err := os.WriteFile(tables+"setgroups", []byte("deny"), 0); err != nil {
				return why, err
			}
		}
		if err := os.WriteFile(tables+m.file, fmt.Appendf(nil, "0 %d 1", m.own), 0); err != nil {
			return why, err
		}
	}
	return why, nil
}

// await becomes the program that its arguments name, when it is told that its ids are
// mapped.
func await() {
	err := func() error {
		fd, err := strconv.Atoi(os.Args[1])
		if err != nil {
			return err
		}
		mapped := os.NewFile(uintptr(fd), "mapped")
		line, err := io.ReadAll(mapped)
		mapped.Close()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return errors.New("nobody has mapped the ids of this process")
		}
		env := os.Environ()
		if why := strings.TrimSpace(string(line)); why != "" {
			env = append(env, oneIDVariable+"="+why)
		}
		return unix.Exec(reexec.Self(), os.Args[2:], env)
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
