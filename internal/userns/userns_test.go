package userns

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
)

// Tables of /proc/self/uid_map, captured in gVisor and on Linux (first), in a
// container of rootless Podman, and in the namespaces of a node.
func TestIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		table    string
		want     []syscall.SysProcIDMap
		complete bool
	}{
		"all ids":        {"         0          0 4294967295\n", []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}, true},
		"two ranges":     {"         0       1000          1\n         1     100000      65536\n", []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: 1, HostID: 1, Size: 65535}}, false},
		"a node's":       {"         0          0      65536\n", []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}, false},
		"one id":         {"         0       1000          1\n", []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}, false},
		"not mapped yet": {"", nil, false},
	} {
		got, err := identity(strings.NewReader(c.table))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: the mappings are not as they should be:\n%s", name, diff)
		}
		if got := complete(strings.NewReader(c.table)); got != c.complete {
			t.Errorf("%s: complete is %v", name, got)
		}
	}
	if got, err := identity(strings.NewReader("no table\n")); err == nil {
		t.Errorf("no table gives %v", got)
	}
}

func TestForbidden(t *testing.T) {
	for name, c := range map[string]struct {
		parameter, value string
		privileged       bool
		says             string
	}{
		"none at all":             {"user/max_user_namespaces", "0", true, "sysctl -w user.max_user_namespaces=15000"},
		"some":                    {"user/max_user_namespaces", "96337", false, ""},
		"Debian":                  {"kernel/unprivileged_userns_clone", "0", false, "sysctl -w kernel.unprivileged_userns_clone=1"},
		"Debian, root":            {"kernel/unprivileged_userns_clone", "0", true, ""},
		"Ubuntu":                  {"kernel/apparmor_restrict_unprivileged_userns", "1", false, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		"Ubuntu, not restricting": {"kernel/apparmor_restrict_unprivileged_userns", "0", false, ""},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, c.parameter)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(c.value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		got := forbidden(dir, c.privileged)
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) || c.says != "" && !strings.HasPrefix(got, file+" is "+c.value) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestInside(t *testing.T) {
	for name, c := range map[string]struct {
		ranges []user.SubID
		want   []string
	}{
		"Debian's":         {[]user.SubID{{Name: "user", SubID: 100000, Count: 65536}}, []string{"0", "1000", "1", "1", "100000", "65535"}},
		"two ranges":       {[]user.SubID{{SubID: 100000, Count: 10}, {SubID: 300000, Count: 20}}, []string{"0", "1000", "1", "1", "100000", "10", "11", "300000", "20"}},
		"more than enough": {[]user.SubID{{SubID: 100000, Count: 65535}, {SubID: 300000, Count: 20}}, []string{"0", "1000", "1", "1", "100000", "65535"}},
	} {
		if diff := cmp.Diff(c.want, inside(1000, c.ranges)); diff != "" {
			t.Errorf("%s: the arguments are not as they should be:\n%s", name, diff)
		}
	}
}

// A process is in a cgroup whose directory has the files of cgroup v2; systemd's unit
// with Delegate= gives its user those that are written to. Root, who may run this test,
// may write to all, so that what is not delegated is missing here.
func TestDelegated(t *testing.T) {
	const table = "1:name=systemd:/\n0::/user.slice/run.scope\n"
	for name, c := range map[string]struct {
		table, controllers string
		without            string
		says               string
	}{
		"delegated":         {table, "cpuset cpu io memory pids", "", ""},
		"no delegation":     {table, "cpuset cpu io memory pids", "cgroup.subtree_control", "systemd-run --user --scope --property=Delegate=yes k3s9p up"},
		"only some":         {table, "memory pids", "", "without the controllers cpu\nhint: "},
		"only cgroup v1":    {"4:memory:/user.slice\n", "", "", "names no cgroup of version 2"},
		"outside of the ns": {"0::/../other\n", "cpu memory pids", "", "is not delegated"},
	} {
		root := t.TempDir()
		dir := filepath.Join(root, "user.slice", "run.scope")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"cgroup.procs": "", "cgroup.subtree_control": "", "cgroup.controllers": c.controllers + "\n"} {
			if file == c.without {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := delegated(root, c.table)
		if c.says == "" && (err != nil || got != dir) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
