package gvisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/leftover"
)

// A filesystem that falls silent is FUSE on this machine, and a bind mount of it in the
// sandbox, over 9p like all that is there: gVisor asks it with a system call of its own.
// Its server is a process of its own too. When that ends, whoever waits for it gets an
// error: nobody could be killed otherwise (fuse_request in Linux fs/fuse/dev.c).
type silent struct {
	dir     string // where it is mounted
	silence string // the file with which it falls silent
	server  *exec.Cmd
}

// mountSilent makes such a filesystem that still answers.
func (s *Sandbox) mountSilent() error {
	s.silent = &silent{dir: filepath.Join(s.dir, "silent"), silence: filepath.Join(s.dir, "silence")}
	if err := os.Mkdir(s.silent.dir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(s.dir, "silent.log")
	log, err := os.Create(name)
	if err != nil {
		return err
	}
	defer log.Close()
	server := exec.Command(Program(contract.Inside), "hang", s.silent.dir, s.silent.silence)
	server.Stdout, server.Stderr = log, log
	if err := leftover.Start(s.dir, server); err != nil {
		return err
	}
	s.silent.server = server
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(s.log("silent.log"), "mounted") {
			return nil
		}
	}
	return fmt.Errorf("mount a FUSE filesystem at %s: no answer within 10 s: %s", s.silent.dir, s.log("silent.log"))
}

func (f *silent) mount(path string) specs.Mount {
	return specs.Mount{Destination: path, Type: "bind", Source: f.dir, Options: []string{"bind", "rw"}}
}

// Silence makes the filesystem of Options.SilentAt answer no statfs any more.
func (s *Sandbox) Silence() {
	s.t.Helper()
	s.must(os.WriteFile(s.silent.silence, nil, 0o644))
}

// end ends the server, and with it every wait for an answer.
func (f *silent) end() error {
	if f == nil || f.server == nil {
		return nil
	}
	err := f.server.Process.Kill()
	var exit *exec.ExitError
	if waitErr := leftover.Wait(filepath.Dir(f.dir), f.server); !errors.As(waitErr, &exit) {
		err = errors.Join(err, waitErr)
	}
	return err
}
