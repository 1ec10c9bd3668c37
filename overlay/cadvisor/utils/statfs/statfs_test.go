// Copyright 2026 The k3s9p Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

//go:build linux

package statfs

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// hanging is a statfs that does not answer until it is told to.
type hanging struct {
	calls  atomic.Int32
	answer chan struct{}
}

func (h *hanging) statfs(_ string, buf *unix.Statfs_t) error {
	h.calls.Add(1)
	<-h.answer
	buf.Frsize, buf.Blocks = 4096, 10
	return nil
}

func TestCallersWaitOnceAndHoldOneGoroutine(t *testing.T) {
	log := captureLog(t)
	h := &hanging{answer: make(chan struct{})}
	a := newAsker(h.statfs, time.Second)

	var waiting sync.WaitGroup
	for range 20 {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			if _, err := a.get("/silent"); !errors.Is(err, ErrNotAnswering) {
				t.Errorf("a caller of a silent filesystem got %v", err)
			}
		}()
	}
	waiting.Wait()
	for range 20 { // a caller that comes later does not wait
		if _, err := a.get("/silent"); !errors.Is(err, ErrNotAnswering) || !strings.Contains(err.Error(), `"/silent"`) {
			t.Errorf("a later caller got %v", err)
		}
	}
	if n := h.calls.Load(); n != 1 {
		t.Errorf("%d system calls are held by one silent filesystem, want 1", n)
	}

	close(h.answer)
	waitFor(t, func() bool { _, err := a.get("/silent"); return err == nil })
	if n := strings.Count(log(), "has not answered"); n != 1 {
		t.Errorf("the silence was logged %d times, want 1:\n%s", n, log())
	}
	if n := strings.Count(log(), "answers statfs again"); n != 1 {
		t.Errorf("the return was logged %d times, want 1:\n%s", n, log())
	}
	if len(a.pending) != 0 {
		t.Errorf("%d questions are left", len(a.pending))
	}
}

func TestSilentFilesystemDelaysNoOther(t *testing.T) {
	silent := make(chan struct{})
	defer close(silent)
	a := newAsker(func(path string, buf *unix.Statfs_t) error {
		if path == "/silent" {
			<-silent
		}
		return unix.Statfs("/", buf)
	}, time.Hour)
	go func() { _, _ = a.get("/silent") }()
	waitFor(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.pending) == 1 })
	if _, err := a.get("/"); err != nil {
		t.Errorf("another filesystem: %v", err)
	}
}

func TestInterruptedCallIsRepeated(t *testing.T) {
	calls := 0
	a := newAsker(func(string, *unix.Statfs_t) error {
		if calls++; calls < 3 {
			return unix.EINTR
		}
		return nil
	}, Timeout)
	if _, err := a.get("/"); err != nil || calls != 3 {
		t.Errorf("after %d calls: %v", calls, err)
	}
}

func TestErrorNamesTheMountPoint(t *testing.T) {
	_, err := Get("/no/such/mount")
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/mount") {
		t.Errorf("Get of a missing mount point: %v", err)
	}
}

func TestGetEqualsStatfs(t *testing.T) {
	var buf unix.Statfs_t
	if err := unix.Statfs("/proc/self", &buf); err != nil {
		t.Fatal(err)
	}
	if got, err := Get("/proc/self"); err != nil || got.Capacity != 0 || got.Inodes != 0 {
		t.Errorf("procfs has neither blocks nor inodes, got %+v, %v", got, err)
	}
	if err := unix.Statfs("/", &buf); err != nil {
		t.Fatal(err)
	}
	got, err := Get("/")
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(buf.Frsize) * buf.Blocks; got.Capacity != want {
		t.Errorf("Capacity is %d bytes, statfs says %d", got.Capacity, want)
	}
	if got.Inodes != buf.Files {
		t.Errorf("Inodes is %d, statfs says %d", got.Inodes, buf.Files)
	}
}

func TestUnits(t *testing.T) {
	for _, test := range []struct {
		name string
		buf  unix.Statfs_t
		want Stats
	}{
		{"fragments are the unit", unix.Statfs_t{Bsize: 1 << 20, Frsize: 4096, Blocks: 100, Bfree: 50, Bavail: 40, Files: 9, Ffree: 3},
			Stats{Capacity: 409600, Free: 204800, Available: 163840, Inodes: 9, InodesFree: 3}},
		{"blocks where no fragment size is given", unix.Statfs_t{Bsize: 512, Blocks: 100, Bfree: 50, Bavail: 40},
			Stats{Capacity: 51200, Free: 25600, Available: 20480}},
		{"9p over virtio counts in units of its message size", unix.Statfs_t{Bsize: 258048, Frsize: 258048, Blocks: 1048460, Bfree: 963702, Bavail: 294214},
			Stats{Capacity: 270553006080, Free: 248681373696, Available: 75921334272}},
	} {
		if got := fromKernel(&test.buf); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Get("/"); err != nil {
			b.Fatal(err)
		}
	}
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come true within 10 s")
		}
		time.Sleep(time.Millisecond)
	}
}

// captureLog returns a function that returns what was logged since.
func captureLog(t *testing.T) func() string {
	t.Helper()
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"logtostderr": "false", "one_output": "true"} {
		if err := flags.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var buf bytes.Buffer
	klog.SetOutput(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return buf.Write(p)
	}))
	t.Cleanup(func() { _ = flags.Set("logtostderr", "true") })
	return func() string {
		klog.Flush()
		mu.Lock()
		defer mu.Unlock()
		return buf.String()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
