package native

import (
	"net"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"

	"k3s9p/test/gvisor"
)

func TestMain(m *testing.M) { gvisor.Main(m) }

// within calls f in a network namespace, on a thread that ends with it.
func within(path string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		handle, err := netns.GetFromPath(path)
		if err == nil {
			defer handle.Close()
			err = netns.Set(handle)
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

func listen(path, address string) (listener net.Listener, err error) {
	err = within(path, func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	return listener, err
}
