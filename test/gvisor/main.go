package gvisor

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"k3s9p/internal/proof/contract"
	"k3s9p/internal/proof/leftover"
	"k3s9p/internal/rmtree"
)

// run is what the sandboxes of this process have in common.
var run struct {
	contract.Run
	sync.Mutex        // held for good by who ends the process
	dir        string // holds a directory per sandbox
	started    int
}

// Main is what TestMain of a scenario calls. It removes what an earlier run left,
// and deletes all sandboxes also when the tests are interrupted; it fails if
// something of them is left.
func Main(m interface{ Run() int }) {
	given, ok := contract.Given()
	if !ok {
		os.Exit(m.Run()) // every test skips: see Require
	}
	run.Run = given
	leftover.Launcher = Program(contract.Launcher)
	err := leftover.Clean(run.Sandboxes, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	if err == nil {
		run.dir, err = leftover.Claim(run.Sandboxes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	signal.Ignore(unix.SIGPIPE) // go test may have ended before the clean-up has
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-signals
		run.Lock() // no further sandbox starts
		sandboxes, _ := leftover.Sandboxes(run.dir)
		for _, sandbox := range sandboxes {
			if kept, err := keepLogs(sandbox); err == nil {
				fmt.Printf("interrupted: the logs of a sandbox are in %s\n", kept)
			}
		}
		err := leftover.Remove(run.dir)
		if err != nil { // the test was just making something
			err = leftover.Remove(run.dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(130)
	}()
	code := m.Run()
	if err := clean(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// NodeData is the directory of the data of a node that a test brings up on this
// machine itself: it is a directory of the run, as a sandbox has one.
func NodeData(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(Directory(t), leftover.NodeData)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Directory makes a directory of the run for what is no sandbox: it goes with the run,
// like that of a sandbox, and the processes that name it do too.
func Directory(t *testing.T) string {
	t.Helper()
	Require(t)
	run.Lock()
	defer run.Unlock()
	run.started++
	dir := filepath.Join(run.dir, strconv.Itoa(run.started))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// clean checks that the sandboxes have left nothing, and removes it if they have.
func clean() error {
	run.Lock()
	var left []string
	for pid, line := range leftover.Processes(run.dir) {
		left = append(left, fmt.Sprintf("process %d: %s", pid, line))
	}
	mounts, err := rmtree.Mounts(run.dir)
	for _, mount := range mounts {
		left = append(left, "mount "+mount)
	}
	sandboxes, listErr := leftover.Sandboxes(run.dir)
	for _, dir := range sandboxes {
		left = append(left, "directory "+dir)
	}
	err = errors.Join(err, listErr, leftover.Remove(run.dir))
	if len(left) > 0 {
		err = errors.Join(fmt.Errorf("sandboxes have left\n%s", strings.Join(left, "\n")), err)
	}
	return err
}
