// Package probe finds out what this machine can do, by doing it: it mounts an
// overlay and deletes a file in it, adds a rule, opens the device.
//
// What a probe changes is in namespaces or folders of its own, which are gone when
// it returns. A probe answers with nil, or with the error that a node would meet.
// Nothing is inferred from the version of a kernel: sandboxes state one that they
// do not have.
package probe

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// isolated calls f in namespaces of its own (clone flags, as of unshare(2)). They
// end with the thread, which nobody else gets.
func isolated(flags int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- func() error {
			if err := unix.Unshare(flags | unix.CLONE_FS); err != nil {
				return fmt.Errorf("make a namespace: %w", err)
			}
			if flags&unix.CLONE_NEWNS != 0 {
				if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
					return fmt.Errorf("make / private: %w", err)
				}
			}
			return f()
		}()
	}()
	return <-result
}
