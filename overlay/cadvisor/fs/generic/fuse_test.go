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

package generic_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/google/cadvisor/fs"
	"github.com/google/cadvisor/utils/statfs"
)

// hungRoot is a FUSE filesystem whose server stops answering statfs at will.
type hungRoot struct {
	gofs.Inode
	mu   sync.Mutex
	hang chan struct{} // nil: answer at once
}

func (r *hungRoot) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	r.mu.Lock()
	hang := r.hang
	r.mu.Unlock()
	if hang != nil {
		<-hang
	}
	out.Bsize, out.Frsize = 4096, 4096
	out.Blocks, out.Bfree, out.Bavail = 1000, 600, 500
	return 0
}

func (r *hungRoot) stopAnswering() { r.mu.Lock(); defer r.mu.Unlock(); r.hang = make(chan struct{}) }
func (r *hungRoot) answer()        { r.mu.Lock(); defer r.mu.Unlock(); close(r.hang); r.hang = nil }

// mountFuse mounts a filesystem whose source is fsName.
func mountFuse(t *testing.T, fsName string) (*hungRoot, string) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("FUSE is not available: %v", err)
	} else {
		f.Close()
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting FUSE directly needs root")
	}
	root, dir := &hungRoot{}, t.TempDir()
	server, err := gofs.Mount(dir, root, &gofs.Options{MountOptions: fuse.MountOptions{
		FsName: fsName, Name: "hung", DirectMountStrict: true,
	}})
	if err != nil {
		t.Fatalf("mount a FUSE filesystem at %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return root, dir
}

// A filesystem that is in every sample stops answering: the samples lose it and
// nothing else, wait once, and hold one goroutine.
func TestHungMountInEverySample(t *testing.T) {
	root, dir := mountFuse(t, "/dev/k3s9p-hung")
	info, err := fs.NewFsInfo(fs.Context{})
	if err != nil {
		t.Fatal(err)
	}
	before := sample(t, info)
	if got, ok := before["/dev/k3s9p-hung"]; !ok || got.Capacity != 1000*4096 || got.Free != 600*4096 || got.Available != 500*4096 {
		t.Fatalf("the FUSE filesystem is reported as %+v (%v)", got, ok)
	} else if got.Inodes != nil || got.InodesFree != nil {
		t.Errorf("a filesystem without an inode table reports inodes")
	}

	root.stopAnswering()
	start := time.Now()
	during := sample(t, info)
	if took := time.Since(start); took < statfs.Timeout || took >= 2*statfs.Timeout {
		t.Errorf("the first sample took %v, want one wait of %v", took, statfs.Timeout)
	}
	if _, ok := during["/dev/k3s9p-hung"]; ok {
		t.Error("a filesystem that does not answer is reported")
	}
	for device := range before {
		if _, ok := during[device]; !ok && device != "/dev/k3s9p-hung" {
			t.Errorf("%s is lost with the one that hangs", device)
		}
	}
	start = time.Now()
	for range 10 {
		sample(t, info)
	}
	if took := time.Since(start); took > statfs.Timeout {
		t.Errorf("ten more samples took %v: they waited again", took)
	}
	if n := goroutinesInStatfs(); n != 1 {
		t.Errorf("%d goroutines are held by one mount, want 1", n)
	}

	root.answer()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, ok := sample(t, info)["/dev/k3s9p-hung"]; ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the filesystem answers again and is not reported")
		}
	}
	if n := goroutinesInStatfs(); n != 0 {
		t.Errorf("%d goroutines are left", n)
	}
	_ = dir
}

// A filesystem that is answered on demand is in no sample, is found by a path on
// it, and may hang without any sample noticing.
func TestHungMountOnDemand(t *testing.T) {
	root, dir := mountFuse(t, "user@server:/share")
	info, err := fs.NewFsInfo(fs.Context{})
	if err != nil {
		t.Fatal(err)
	}
	for device := range sample(t, info) {
		if strings.HasPrefix(device, "user@server:/share") {
			t.Fatalf("%s is in the sample", device)
		}
	}
	device, err := info.GetDirFsDevice(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(device.Device, "user@server:/share_") {
		t.Errorf("%s is on %q", dir, device.Device)
	}
	mountpoint, err := info.GetMountpointForDevice(device.Device)
	if err != nil || mountpoint != dir {
		t.Errorf("%s is mounted at %q (%v)", device.Device, mountpoint, err)
	}
	asked, err := info.GetFsInfoForPath(map[string]struct{}{mountpoint: {}})
	if err != nil || len(asked) != 1 || asked[0].Capacity != 1000*4096 {
		t.Errorf("asked about, it is reported as %+v (%v)", asked, err)
	}

	root.stopAnswering()
	defer root.answer()
	if _, err := statfs.Get(dir); !errors.Is(err, statfs.ErrNotAnswering) {
		t.Errorf("statfs of the hung mount: %v", err)
	}
	start := time.Now()
	sample(t, info)
	if took := time.Since(start); took > statfs.Timeout {
		t.Errorf("a sample took %v: it waited for a mount that is answered on demand", took)
	}
}

// sample returns the partitions of one sample by device.
func sample(t *testing.T, info fs.FsInfo) map[string]fs.Fs {
	t.Helper()
	filesystems, err := info.GetGlobalFsInfo()
	if err != nil {
		t.Fatal(err)
	}
	byDevice := make(map[string]fs.Fs)
	for _, filesystem := range filesystems {
		if _, double := byDevice[filesystem.Device]; double {
			t.Errorf("%s is reported twice", filesystem.Device)
		}
		byDevice[filesystem.Device] = filesystem
	}
	return byDevice
}

// goroutinesInStatfs counts the goroutines that are inside of the system call.
func goroutinesInStatfs() int {
	buf := make([]byte, 1<<20)
	return strings.Count(string(buf[:runtime.Stack(buf, true)]), "statfs.(*asker).ask(")
}
