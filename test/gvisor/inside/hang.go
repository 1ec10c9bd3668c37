package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// silent is an empty filesystem whose server never answers statfs.
type silent struct{ gofs.Inode }

var _ gofs.NodeStatfser = (*silent)(nil)

func (*silent) Statfs(ctx context.Context, _ *fuse.StatfsOut) syscall.Errno {
	fmt.Println("statfs: no answer")
	<-ctx.Done()
	select {}
}

// hang mounts it and serves until the process is ended.
func hang(dir string) error {
	server, err := gofs.Mount(dir, &silent{}, &gofs.Options{MountOptions: fuse.MountOptions{
		FsName: "silent", Name: "silent", DirectMountStrict: true,
	}})
	if err != nil {
		return fmt.Errorf("mount a FUSE filesystem at %s: %w", dir, err)
	}
	fmt.Println("mounted")
	server.Wait()
	return errors.New("the filesystem was unmounted")
}
