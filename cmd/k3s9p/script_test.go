package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"k3s9p/internal/bundle"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// launcher is a k3s9p with a distribution of a few scripts, and k3sLauncher one with k3s.
var launcher, k3sLauncher string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "k3s9p-cli-")
	if err != nil {
		panic(err)
	}
	launcher, k3sLauncher = filepath.Join(dir, "k3s9p"), filepath.Join(dir, "k3s9p-k3s")
	if err := makeLaunchers(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = rmtree.Tree(dir)
	os.Exit(code)
}

func makeLaunchers(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil { // for a user that is not root
		return err
	}
	bare := filepath.Join(dir, "bare")
	if output, err := exec.Command("go", "build", "-o", bare, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("compile the launcher: %w\n%s", err, output)
	}
	return errors.Join(
		makeLauncher(launcher, bare, record.Build{Distribution: "kubernetes", Version: "v1.2.3", Sets: []record.Set{{Name: "kubernetes", Version: "v1.2.3"}}}, "bin/kubectl", "bin/ctr", "bin/runc"),
		makeLauncher(k3sLauncher, bare, record.Build{Distribution: "k3s", Version: "v1.2.3+k3s1", Lacks: []string{"the userland"}}, "k3s"),
	)
}

// makeLauncher attaches a distribution to the bare program.
func makeLauncher(name, bare string, build record.Build, programs ...string) error {
	program := []byte("#!/bin/sh\necho \"$0\" \"$@\" \"KUBECONFIG=$KUBECONFIG\"\n")
	for _, name := range programs {
		build.Outputs = append(build.Outputs, record.Output{Path: name, Size: int64(len(program)), SHA256: fmt.Sprintf("%x", sha256.Sum256(program))})
	}
	in, err := os.Open(bare)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	err = bundle.Attach(out, in, build, func(record.Output) (io.ReadCloser, error) {
		var frame bytes.Buffer
		err := bundle.Compress(&frame, bytes.NewReader(program), int64(len(program)))
		return io.NopCloser(&frame), err
	})
	return errors.Join(err, out.Close())
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("K3S9P_DATA_DIR", filepath.Join(env.WorkDir, "data"))
			env.Setenv("LAUNCHER", launcher)
			env.Setenv("K3S_LAUNCHER", k3sLauncher)
			return os.Symlink(launcher, filepath.Join(env.WorkDir, "k3s9p"))
		},
		Condition: func(condition string) (bool, error) {
			switch condition {
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", condition)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// k3s9p runs it in a network namespace without routes or listeners.
			"k3s9p": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec("unshare", append([]string{"--net", launcher}, args...)...)
				if neg == (err == nil) {
					ts.Fatalf("k3s9p %v: %v", args, err)
				}
			},
			// nobody runs it as somebody who is not root.
			"nobody": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", launcher}, args...)...)
				if neg == (err == nil) {
					ts.Fatalf("k3s9p %v as nobody: %v", args, err)
				}
			},
			// locked holds the lock of a data directory until the script ends.
			"locked": func(ts *testscript.TestScript, _ bool, args []string) {
				file, err := os.OpenFile(ts.MkAbs(args[0]), os.O_CREATE|os.O_RDWR, 0o600)
				ts.Check(err)
				ts.Check(syscall.Flock(int(file.Fd()), syscall.LOCK_EX))
				ts.Defer(func() { file.Close() })
			},
			// listening holds a port on loopback until the script ends.
			"listening": func(ts *testscript.TestScript, _ bool, args []string) {
				listener, err := net.Listen("tcp", args[0])
				ts.Check(err)
				ts.Defer(func() { listener.Close() })
			},
			// shorten cuts bytes out of the middle of a file.
			"shorten": func(ts *testscript.TestScript, _ bool, args []string) {
				data, err := os.ReadFile(launcher)
				ts.Check(err)
				data[len(data)-400] ^= 0xff
				// A child of another script would have the file open for writing until it runs its
				// own program, and nobody could run this one (golang.org/issue/22315).
				syscall.ForkLock.RLock()
				err = os.WriteFile(ts.MkAbs(args[0]), data, 0o755)
				syscall.ForkLock.RUnlock()
				ts.Check(err)
			},
		},
	})
}
