package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func shell(name, script string) Program {
	return Program{Name: name, Args: []string{"/bin/sh", "-c", script}, Env: os.Environ(), Grace: 5 * time.Second}
}

func quiet(t *testing.T) *Supervisor {
	s := New(t.TempDir(), slog.New(slog.DiscardHandler), nil)
	t.Cleanup(s.StopAll)
	return s
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

func TestWhatDiesIsStartedAnew(t *testing.T) {
	s := quiet(t)
	s.Keep()
	if err := s.Start(shell("dies", "echo again; exit 3")); err != nil {
		t.Fatal(err)
	}
	await(t, "a restart", func() bool { return s.States()[0].Restarts > 0 })
	if exit := s.States()[0].LastExit; exit != "exit status 3" {
		t.Errorf("it ended with %q", exit)
	}
	log, err := os.ReadFile(s.States()[0].Log)
	if err != nil || !strings.Contains(string(log), "again") || !strings.Contains(string(log), "started anew") {
		t.Errorf("the log is %q, %v", log, err)
	}
}

// A log that cannot be written, as on a full disk, ends nobody.
func TestWhatCannotBeLoggedIsDropped(t *testing.T) {
	s := quiet(t)
	done := filepath.Join(t.TempDir(), "done")
	if err := os.Symlink("/dev/full", filepath.Join(s.dir, "chatty.log")); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(shell("chatty", "echo one; sleep 0.2; echo two; sleep 0.2; echo three && echo > "+done+"; exec sleep 60")); err != nil {
		t.Fatal(err)
	}
	await(t, "the third line", func() bool {
		if exit := s.States()[0].LastExit; exit != "" {
			t.Fatalf("the program ended: %s", exit)
		}
		_, err := os.Stat(done)
		return err == nil
	})
}

func TestAwaitNamesTheProgramThatEnded(t *testing.T) {
	s := quiet(t)
	if err := s.Start(shell("apiserver", "echo no such flag; exit 1")); err != nil {
		t.Fatal(err)
	}
	err := s.Await(t.Context(), func(context.Context) error { return errors.New("not yet") }, "apiserver")
	var ended *EndedError
	if !errors.As(err, &ended) || !strings.Contains(err.Error(), "no such flag") || !strings.Contains(err.Error(), "apiserver.log") {
		t.Errorf("the error is %v", err)
	}
}

// A program that is just being started by somebody else has not ended.
func TestAwaitDuringAStart(t *testing.T) {
	s := New(t.TempDir(), slog.New(slog.DiscardHandler), nil)
	s.children = append(s.children, &child{Program: Program{Name: "kine"}})
	if err := s.Await(t.Context(), func(context.Context) error { return nil }, "kine"); err != nil {
		t.Error(err)
	}
}

func TestAwaitTellsWhatWasMissingWhenTimeIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := quiet(t).Await(ctx, func(context.Context) error { return errors.New("the node is not Ready") })
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the node is not Ready") {
			t.Errorf("the error is %v", err)
		}
	})
}

func TestStopAllEndsTheLastFirst(t *testing.T) {
	s := quiet(t)
	order := filepath.Join(t.TempDir(), "order")
	for _, name := range []string{"first", "second"} {
		err := s.Start(shell(name, `trap "echo `+name+` >> `+order+`; exit 0" TERM; echo up; while :; do sleep 0.05; done`))
		if err != nil {
			t.Fatal(err)
		}
		i := len(s.States()) - 1
		await(t, "the start of "+name, func() bool {
			log, _ := os.ReadFile(s.States()[i].Log)
			return strings.Contains(string(log), "up")
		})
	}
	s.Keep()
	s.StopAll()
	if data, err := os.ReadFile(order); err != nil || string(data) != "second\nfirst\n" {
		t.Errorf("they ended as %q, %v", data, err)
	}
	for _, state := range s.States() {
		if state.PID != 0 || state.Restarts > 0 {
			t.Errorf("%s: %+v", state.Name, state)
		}
	}
	if err := s.Start(shell("late", "sleep 60")); err == nil {
		t.Error("a program was started after the end")
	}
}

func TestWhatIgnoresSIGTERMIsKilled(t *testing.T) {
	s := quiet(t)
	program := shell("stubborn", `trap "" TERM; echo up; while :; do sleep 0.05; done`)
	program.Grace = time.Second
	if err := s.Start(program); err != nil {
		t.Fatal(err)
	}
	await(t, "its start", func() bool {
		log, _ := os.ReadFile(s.States()[0].Log)
		return strings.Contains(string(log), "up")
	})
	s.StopAll()
	if exit := s.States()[0].LastExit; exit != "signal: killed" {
		t.Errorf("it ended with %q", exit)
	}
}

// A program starts another one, and ends first: nobody waits for that one.
func TestOrphansAreCollected(t *testing.T) {
	s := quiet(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() { s.Reap(ctx); close(done) }()
	file := filepath.Join(t.TempDir(), "pid")
	await(t, "being a subreaper", func() bool {
		var on int
		return unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&on)), 0, 0, 0) == nil && on == 1
	})
	if err := s.Start(shell("leaves", "(echo $$; sh -c 'echo $PPID > "+file+"; sleep 0.2' &) ; sleep 0.05")); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the program", func() bool { return s.States()[0].PID == 0 })
	await(t, "the collection", func() bool { return len(children(t)) == 0 })
	if exit := s.States()[0].LastExit; exit != "exit status 0" {
		t.Errorf("the program itself ended with %q: its status was taken away", exit)
	}
	guest := exec.Command("sh", "-c", "exit 7")
	_ = s.Run(guest, func() { // it fails
		await(t, "the end of a program of others", func() bool { return slices.Contains(endedChildren(), guest.Process.Pid) })
		s.reap()
	})
	if guest.ProcessState == nil || guest.ProcessState.ExitCode() != 7 {
		t.Errorf("a program of others ended with %v: its status was taken away", guest.ProcessState)
	}
	cancel()
	<-done
}

// children are all of this process, whatever their state.
func children(t *testing.T) []string {
	t.Helper()
	var all []string
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			t.Skipf("this kernel does not list children: %v", err)
		}
		all = append(all, strings.Fields(string(data))...)
	}
	return all
}
