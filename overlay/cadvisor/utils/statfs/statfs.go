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

// Package statfs asks a filesystem for its size and never waits long for one
// that does not answer.
//
// statfs(2) on a network or FUSE mount whose server is gone sleeps in the kernel
// until the server is back, possibly for ever, and a system call cannot be
// cancelled. So the call is made by a goroutine of its own, and the caller waits
// for at most Timeout. While that goroutine is held no second one is started for
// the same mount point: a caller that comes later is refused at once. A silent
// mount thus costs one wait and one goroutine, however often it is asked about.
package statfs

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Timeout is the longest time that Get waits for a filesystem.
const Timeout = 2 * time.Second

// ErrNotAnswering is returned, wrapped with the mount point, for a filesystem
// that did not answer within Timeout, or that an earlier call is still waiting
// for.
var ErrNotAnswering = errors.New("filesystem does not answer statfs")

// Stats is what statfs(2) tells of a filesystem.
type Stats struct {
	// Capacity, Free and Available are in bytes. Available is what an
	// unprivileged user may still allocate. Capacity is 0 for a filesystem that
	// has no blocks, as the kernel's pseudo filesystems.
	Capacity, Free, Available uint64
	// Inodes and InodesFree count inodes. Inodes is 0 for a filesystem that has
	// no inode table: their number is then unknown, not exhausted.
	Inodes, InodesFree uint64
}

// Get returns the statistics of the filesystem that is mounted at mountpoint, or
// the error of statfs(2), or an error that wraps ErrNotAnswering.
func Get(mountpoint string) (Stats, error) {
	return system.get(mountpoint)
}

var system = newAsker(unix.Statfs, Timeout)

// asker keeps the questions that are not answered yet.
type asker struct {
	statfs  func(path string, buf *unix.Statfs_t) error
	timeout time.Duration

	mu      sync.Mutex
	pending map[string]*question // by mount point
}

type question struct {
	asked    time.Time
	answered chan struct{} // closed once stats and err are set
	stats    Stats
	err      error
	late     bool // a caller gave up on it; guarded by asker.mu
}

func newAsker(statfs func(string, *unix.Statfs_t) error, timeout time.Duration) *asker {
	return &asker{statfs: statfs, timeout: timeout, pending: make(map[string]*question)}
}

func (a *asker) get(mountpoint string) (Stats, error) {
	a.mu.Lock()
	q, found := a.pending[mountpoint]
	if found && q.late {
		a.mu.Unlock()
		return Stats{}, notAnswering(mountpoint)
	}
	if !found {
		q = &question{asked: time.Now(), answered: make(chan struct{})}
		a.pending[mountpoint] = q
		go a.ask(mountpoint, q)
	}
	a.mu.Unlock()

	// A local filesystem has answered when the scheduler comes back: no timer is
	// needed then, which would cost more than the call.
	runtime.Gosched()
	select {
	case <-q.answered:
		return q.stats, q.err
	default:
	}
	timer := time.NewTimer(a.timeout)
	defer timer.Stop()
	select {
	case <-q.answered:
		return q.stats, q.err
	case <-timer.C:
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[mountpoint] != q {
		return q.stats, q.err // answered while the timer fired
	}
	if !q.late {
		q.late = true
		klog.Warningf("The filesystem at %q has not answered statfs for %v: it is not reported until it answers", mountpoint, a.timeout)
	}
	return Stats{}, notAnswering(mountpoint)
}

// ask makes the system call, which may never return.
func (a *asker) ask(mountpoint string, q *question) {
	q.stats, q.err = a.call(mountpoint)

	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pending, mountpoint)
	close(q.answered)
	if q.late {
		klog.Infof("The filesystem at %q answers statfs again, after %v", mountpoint, time.Since(q.asked).Round(time.Second))
	}
}

func (a *asker) call(mountpoint string) (Stats, error) {
	var buf unix.Statfs_t
	for {
		err := a.statfs(mountpoint, &buf)
		if err == unix.EINTR {
			continue // the runtime's preemption signals interrupt FUSE and NFS
		}
		if err != nil {
			return Stats{}, fmt.Errorf("statfs %q: %w", mountpoint, err)
		}
		return fromKernel(&buf), nil
	}
}

// fromKernel counts in units of f_frsize, as statvfs(3) does; a filesystem that
// leaves it 0 counts in f_bsize.
func fromKernel(buf *unix.Statfs_t) Stats {
	unit := uint64(buf.Frsize) //nolint:unconvert // 32 bits on some architectures
	if unit == 0 {
		unit = uint64(buf.Bsize) //nolint:unconvert
	}
	return Stats{
		Capacity:   unit * buf.Blocks,
		Free:       unit * buf.Bfree,
		Available:  unit * buf.Bavail,
		Inodes:     buf.Files,
		InodesFree: buf.Ffree,
	}
}

func notAnswering(mountpoint string) error {
	return fmt.Errorf("%w: %q", ErrNotAnswering, mountpoint)
}
