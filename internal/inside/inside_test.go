package inside

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shell runs scripts of sh, as a node runs its programs.
func shell(r Request, streams [3]*os.File, signals <-chan os.Signal) (int, error) {
	if r.Args[0] != "sh" {
		return 0, errors.New("there is no " + r.Args[0])
	}
	cmd := exec.Command("sh", r.Args[1:]...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = r.Dir, streams[0], streams[1], streams[2]
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
		_ = cmd.Process.Kill()
	}()
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), nil
}

func start(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go Serve(listener, shell)
	return path
}

// files are streams with an input; what comes back is what was printed on both outputs.
func files(t *testing.T, input string) (streams [3]*os.File, printed func() string) {
	t.Helper()
	dir := t.TempDir()
	for i, name := range []string{"in", "out", "err"} {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		streams[i] = file
	}
	if _, err := streams[0].WriteString(input); err != nil {
		t.Fatal(err)
	}
	if _, err := streams[0].Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return streams, func() string {
		out, _ := os.ReadFile(filepath.Join(dir, "out"))
		err, _ := os.ReadFile(filepath.Join(dir, "err"))
		return string(out) + "|" + string(err)
	}
}

func TestRun(t *testing.T) {
	path := start(t)
	for name, c := range map[string]struct {
		args            []string
		status          int
		printed, failed string
	}{
		"streams and directory": {args: []string{"sh", "-c", "cat; pwd; echo warning >&2"}, printed: "input/\n|warning\n"},
		"exit status":           {args: []string{"sh", "-c", "exit 7"}, status: 7, printed: "|"},
		"long arguments":        {args: []string{"sh", "-c", "echo ${#0}", strings.Repeat("x", 100000)}, printed: "100000\n|"},
		"too long ones":         {args: []string{"sh", "-c", strings.Repeat("x", message)}, printed: "|", failed: "longer than"},
		"another program":       {args: []string{"true"}, printed: "|", failed: "there is no true"},
	} {
		streams, printed := files(t, "input")
		status, err := Run(path, Request{Args: c.args, Dir: "/"}, streams, nil)
		if status != c.status || (err != nil) != (c.failed != "") || err != nil && !strings.Contains(err.Error(), c.failed) || printed() != c.printed {
			t.Errorf("%s: status %d, %v, printed %q", name, status, err, printed())
		}
	}
	if _, err := Run(path+"-", Request{Args: []string{"sh"}}, [3]*os.File{}, nil); !errors.Is(err, ErrNobody) {
		t.Errorf("where nobody is: %v", err)
	}
}

// A signal reaches the program, and one that nobody waits for any more ends.
func TestSignals(t *testing.T) {
	path := start(t)
	streams, printed := files(t, "")
	signals := make(chan os.Signal, 1)
	go func() {
		for printed() != "ready\n|" {
			time.Sleep(time.Millisecond)
		}
		signals <- syscall.SIGTERM
	}()
	status, err := Run(path, Request{Args: []string{"sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done"}, Dir: "/"}, streams, signals)
	if err != nil || status != 9 {
		t.Errorf("status %d, %v", status, err)
	}
}
