package upstream

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/cadvisor/fs"
	_ "github.com/google/cadvisor/fs/btrfs/install"
	_ "github.com/google/cadvisor/fs/nfs/install"
	_ "github.com/google/cadvisor/fs/overlay/install"
	_ "github.com/google/cadvisor/fs/tmpfs/install"
	_ "github.com/google/cadvisor/fs/vfs/install"
	_ "github.com/google/cadvisor/fs/zfs/install"
)

// BenchmarkGetGlobalFsInfo measures one sample of all filesystems. It mounts them
// itself and leaves them: mage bench runs it in a mount namespace of its own.
func BenchmarkGetGlobalFsInfo(b *testing.B) {
	if os.Getenv("K3S9P_BENCH_NAMESPACE") == "" {
		b.Skip("it mounts filesystems: go tool mage bench runs it in a mount namespace of its own")
	}
	dir := b.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		b.Fatal(err)
	}
	mounted := 0
	for _, mounts := range []int{20, 1000} {
		for ; mounted < mounts; mounted++ {
			target := filepath.Join(dir, fmt.Sprint(mounted))
			if err := os.Mkdir(target, 0o755); err != nil {
				b.Fatal(err)
			}
			if err := syscall.Mount("tmpfs", target, "tmpfs", 0, "size=1m"); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("mounts=%d", mounts), func(b *testing.B) {
			info, err := fs.NewFsInfo(fs.Context{})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				filesystems, err := info.GetGlobalFsInfo()
				if err != nil || len(filesystems) < mounts {
					b.Fatalf("%d filesystems, %v", len(filesystems), err)
				}
			}
		})
	}
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		b.Fatal(err)
	}
}
