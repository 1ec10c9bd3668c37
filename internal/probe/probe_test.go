package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/nat"
)

func TestMain(m *testing.M) {
	children["hangs"] = func([]string) error { time.Sleep(time.Hour); return nil }
	children["panics"] = func([]string) error { panic("the kernel sent something unexpected") }
	children["ends"] = func([]string) error { os.Exit(0); return nil }
	children["unclear"] = func([]string) error { return withScratch("/proc/nowhere", nil) }
	children["refused"] = func([]string) error { return errors.New("two\nlines") }
	children["mounts"] = func(args []string) error { return unix.Mount("tmpfs", args[0], "tmpfs", 0, "") }
	children["no-rules"] = func([]string) error { return betweenNetworks(arrivesFromNode) }
	children["other-ports"] = func([]string) error {
		rulesOf[KubeProxyNftables] = strings.Replace(rulesOf[KubeProxyNftables], "ip daddr . meta l4proto . th dport vmap @services", "ip daddr @addresses goto balance", 1)
		return kubeProxyPackets(KubeProxyNftables)
	}
	children["no-service"] = func([]string) error { return betweenNetworks(arrivesAtEndpoint) }
	children["raw-udp-here"] = func([]string) error {
		if err := exec.Command("ip", "route", "add", "local", farther.String(), "dev", "lo").Run(); err != nil {
			return err
		}
		return rawUDP()
	}
	Init()
	os.Exit(m.Run())
}

// Nothing that a probe meets ends or stops the program that asked.
func TestAProbeCannotHarmItsCaller(t *testing.T) {
	for _, c := range []struct{ name, says string }{
		{"hangs", "gave no answer"},
		{"panics", "the kernel sent something unexpected"},
		{"ends", "without an answer"},
		{"unclear", "make a directory for a probe"},
	} {
		ctx := t.Context()
		if c.name == "hangs" {
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			ctx = short
		}
		err := isolated(ctx, 0, c.name)
		if !errors.Is(err, ErrUnclear) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("a probe that %s gives %v", c.name, err)
		}
	}
	if err := isolated(t.Context(), 0, "refused"); err == nil || errors.Is(err, ErrUnclear) || err.Error() != "two lines" {
		t.Errorf("a probe that was refused gives %v", err)
	}
}

func TestANamespaceThatIsRefusedIsNoFinding(t *testing.T) {
	if err := isolated(t.Context(), 1, "refused"); !errors.Is(err, ErrUnclear) {
		t.Errorf("a flag of unshare that nobody knows gives %v", err)
	}
}

func TestWhatAProbeMountsIsNotSeenOutside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a mount namespace needs root")
	}
	dir := t.TempDir()
	if err := isolated(t.Context(), unix.CLONE_NEWNS, "mounts", dir); err != nil {
		t.Fatal(err)
	}
	if mount, err := MountOf(dir); err != nil || mount.Mountpoint == dir {
		t.Errorf("the mount of a probe is still there: %v, %v", mount, err)
	}
}

// A directory goes with the probe; that of a process that was killed goes with the
// next one, and that of another probe stays.
func TestScratchIsRemoved(t *testing.T) {
	dir := t.TempDir()
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, fmt.Sprint(scratch, ended.Process.Pid, "-1"))
	others := filepath.Join(dir, fmt.Sprint(scratch, os.Getppid(), "-1"))
	if err := errors.Join(os.MkdirAll(filepath.Join(left, "deep"), 0o755), os.Mkdir(others, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := withScratch(dir, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if there, _ := filepath.Glob(filepath.Join(dir, scratch+"*")); !slices.Equal(there, []string{others}) {
		t.Errorf("there is %v, not %s", there, others)
	}
}

// On Linux a limit is enforced; whether it is here depends on the machine, but the
// probe has an answer.
func TestMemoryLimit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a cgroup needs root")
	}
	if err := MemoryLimit(t.Context()); err != nil {
		t.Logf("memory limits: %v", err)
		if errors.Is(err, ErrUnclear) {
			t.Skip("no cgroup can be made here")
		}
	}
	// The cgroup of this process only: tests of other packages probe at the same time.
	group := fmt.Sprint(cgroupPrefix, os.Getpid())
	for _, pattern := range []string{"/", "/*/"} { // version 2, and the controllers of version 1
		if left, _ := filepath.Glob(CgroupRoot + pattern + group); len(left) > 0 {
			t.Errorf("the probe left %v", left)
		}
	}
}

// Memory is the machine's, or what the cgroup of the process allows.
func TestMemory(t *testing.T) {
	const limit = 384 << 20
	if inside := os.Getenv("K3S9P_PROBE_LIMITED"); inside != "" {
		if bytes, by, err := Memory(); bytes != limit || by != "its cgroup allows" || err != nil {
			t.Errorf("in a cgroup of %d bytes: %d, %s, %v", limit, bytes, by, err)
		}
		if available, err := MemoryAvailable(); available > limit || available <= 0 || err != nil {
			t.Errorf("in a cgroup of %d bytes are available: %d, %v", limit, available, err)
		}
		return
	}
	if bytes, by, err := Memory(); bytes < limit || by == "" || err != nil {
		t.Errorf("%d bytes, %s, %v", bytes, by, err)
	}
	dir, file := filepath.Join(CgroupRoot, "memory"), "memory.limit_in_bytes"
	if v1, err := CgroupV1(); err == nil && !v1 {
		dir, file = CgroupRoot, "memory.max"
	}
	group := filepath.Join(dir, fmt.Sprint(cgroupPrefix, "memory-", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	defer removeCgroup(group)
	if err := os.WriteFile(filepath.Join(group, file), fmt.Append(nil, limit), 0o644); err != nil {
		t.Skipf("no cgroup can be limited here: %v", err)
	}
	cmd := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$1" -test.run='^TestMemory$'`, group, os.Args[0])
	cmd.Env = append(os.Environ(), "K3S9P_PROBE_LIMITED=yes")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
}

// Here both ways work; a rule that is taken and does nothing is seen.
func TestPacketsOfPods(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	for _, backend := range nat.Backends() {
		for name, try := range map[string]func(context.Context, nat.Backend) error{"masquerade": MasqueradePods, "proxy": ProxyPods} {
			err := try(t.Context(), backend)
			t.Logf("%s by %s: %v", name, backend, err)
			if err != nil && backend.String() == "nftables" {
				t.Errorf("%s by %s: %v", name, backend, err)
			}
		}
	}
	if err := inNetwork(t.Context(), "no-rules"); err == nil || errors.Is(err, ErrUnclear) || !strings.Contains(err.Error(), "with the address 198.51.100.2") {
		t.Errorf("without a rule: %v", err)
	}
}

// On Linux a raw socket gets what is for the machine itself, and nothing else.
func TestRawUDP(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if err := RawUDP(t.Context()); err == nil || errors.Is(err, ErrUnclear) || !strings.Contains(err.Error(), "does not get what a pod sends") {
		t.Errorf("of what is for others: %v", err)
	}
	if err := inNetwork(t.Context(), "raw-udp-here"); err != nil {
		t.Errorf("of what is for this machine: %v", err)
	}
}

// On an ordinary kernel kube-proxy's rules are taken and followed, in each mode whose
// program is there.
func TestKubeProxy(t *testing.T) {
	for mode, writer := range writers {
		t.Run(mode, func(t *testing.T) {
			_, missing := exec.LookPath(writer[0])
			if err := KubeProxy(t.Context(), mode); (err == nil) != (missing == nil) || errors.Is(err, ErrUnclear) {
				t.Errorf("%s is there: %v; the probe gives %v", writer[0], missing == nil, err)
			}
		})
	}
	if err := KubeProxy(t.Context(), "ipvs"); !errors.Is(err, ErrUnclear) {
		t.Errorf("of a mode that it does not know it gives %v", err)
	}
}

// Rules that are taken do not have to work.
func TestRulesThatDoNotServeAService(t *testing.T) {
	if _, err := exec.LookPath(writers[KubeProxyNftables][0]); err != nil {
		t.Skip(err)
	}
	for name, says := range map[string]string{"other-ports": "to another port than the Service's", "no-service": "does not get to its endpoint"} {
		if err := inNetwork(t.Context(), name); err == nil || errors.Is(err, ErrUnclear) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
