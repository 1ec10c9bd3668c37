package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// silent is an empty filesystem whose server answers statfs until a file exists, and
// then never again.
type silent struct {
	gofs.Inode
	silence string
}

var _ gofs.NodeStatfser = (*silent)(nil)

func (s *silent) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	if _, err := os.Stat(s.silence); err != nil {
		*out = fuse.StatfsOut{Blocks: 1000, Bfree: 500, Bavail: 500, Bsize: 4096, Frsize: 4096, NameLen: 255}
		return 0
	}
	fmt.Println("statfs: no answer")
	<-ctx.Done()
	select {}
}

// hang mounts it and serves until the process is ended.
func hang(dir, silence string) error {
	server, err := gofs.Mount(dir, &silent{silence: silence}, &gofs.Options{MountOptions: fuse.MountOptions{
		FsName: "silent", Name: "silent", DirectMountStrict: true, AllowOther: true,
	}})
	if err != nil {
		return fmt.Errorf("mount a FUSE filesystem at %s: %w", dir, err)
	}
	fmt.Println("mounted")
	server.Wait()
	return errors.New("the filesystem was unmounted")
}
