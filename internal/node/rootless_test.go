package node

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"k3s9p/internal/userns"
)

// Where user namespaces are forbidden the parameter is named, with where it is set. In a
// user namespace of the test's own it is that one's (namespaces(7)).
func TestForbiddenNamespaces(t *testing.T) {
	const again = "K3S9P_TEST_FORBIDDEN"
	if os.Getenv(again) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestForbiddenNamespaces$", "-test.v")
		var output bytes.Buffer
		cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), again+"=1"), &output, &output
		if err := userns.Start(cmd); err != nil {
			t.Skipf("no user namespaces here: %v", err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, output.String())
		}
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	if err := probe.Run(); err == nil {
		t.Fatal("a user namespace was made, so this proves nothing")
	}
	_, err := FindRung(t.Context(), RootlessAlways)
	for _, says := range []string{"/proc/sys/user/max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: it does not say %q", err, says)
		}
	}
}
