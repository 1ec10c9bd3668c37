package probe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens a file or device for reading.
func Open(path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return file.Close()
}

// Sysctl reads a kernel parameter and, if it has not the wanted value, opens it for
// writing. It writes nothing: others may write the parameter meanwhile.
func Sysctl(name, wanted string) error {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	value, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(value)) == wanted {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return file.Close()
}

// OOMScore gives a process the score that the first process of a pod gets
// (proc_pid_oom_score_adj(5)): to lower one takes CAP_SYS_RESOURCE.
func OOMScore(ctx context.Context) error { return isolated(ctx, 0, "oom-score") }

func oomScore() error {
	const pause = "-998" // k8s.io/kubernetes pkg/kubelet/qos/policy.go, less one
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(pause), 0o644); err != nil {
		return fmt.Errorf("lower a process's oom_score_adj: %w", err)
	}
	return nil
}

// Seccomp asks the kernel for its seccomp mode, which fails on a kernel without
// (prctl(2), PR_GET_SECCOMP).
func Seccomp() error {
	if _, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_GET_SECCOMP: %w", err)
	}
	return nil
}
