package blocker

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"k3s9p/internal/config"
	"k3s9p/internal/probe"
)

func TestMain(m *testing.M) {
	probe.Init()
	os.Exit(m.Run())
}

// On an ordinary Linux nothing is found that is not there, whatever the machine is
// like: what may be found is asked for in another way.
func TestAnOrdinaryHost(t *testing.T) {
	if version, err := os.ReadFile("/proc/version"); err != nil || bytes.Contains(version, []byte("gVisor")) || os.Geteuid() != 0 {
		t.Skip("an ordinary Linux, and root, are needed")
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(here, "data-") // /tmp may be a tmpfs
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := Make(t.Context(), &Host{Data: filepath.Join(dir, "not", "there"), Plugins: "/nonexistent", Settings: config.Default()})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{
		"cgroup-mounts":     noCgroupMount(t),
		"cgroup-v1":         !exists("/sys/fs/cgroup/cgroup.controllers"),
		"mount-propagation": !rootIsShared(t),
		"disk-thresholds":   isShared(typeOf(t, here)),
		"overlayfs":         typeOf(t, here) == "overlay",
		"cni-plugins":       !exists("/opt/cni/bin/bridge"),
		"oom-score":         !capable(t, unix.CAP_SYS_RESOURCE),
		"kmsg":              unix.Access("/dev/kmsg", unix.R_OK) != nil,
		"services":          !program("nft") && !program("iptables-restore"),
		"tunables":          unix.Access("/proc/sys/vm/overcommit_memory", unix.W_OK) != nil,
	}
	for _, f := range p.Findings {
		t.Logf("%s: %s: %s", f.ID, f.Answer, f.Evidence)
		if (f.Answer == Found) != there[f.ID] {
			t.Errorf("%s: %s, and it is there: %v; seen: %s", f.ID, f.Answer, there[f.ID], f.Evidence)
		}
	}
}

func program(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func noCgroupMount(t *testing.T) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return !bytes.Contains(data, []byte(" /sys/fs/cgroup"))
}

func rootIsShared(t *testing.T) bool {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/"))
	if err != nil || len(mounts) != 1 {
		t.Fatalf("the mount table has %d roots, %v", len(mounts), err)
	}
	return strings.Contains(mounts[0].Optional, "shared:")
}

func typeOf(t *testing.T, path string) string {
	t.Helper()
	mount, err := probe.MountOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return mount.FSType
}

// capable reports whether this process has a capability.
func capable(t *testing.T, capability uint) bool {
	t.Helper()
	self, err := procfs.Self()
	if err != nil {
		t.Fatal(err)
	}
	status, err := self.NewStatus()
	if err != nil {
		t.Fatal(err)
	}
	return status.CapEff&(1<<capability) != 0
}
