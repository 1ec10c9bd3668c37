// Package inside lets a process outside of a node's namespaces run a program in them: who
// is in there starts it with the standard streams that come over a Unix socket
// (SCM_RIGHTS, unix(7)). Nobody has to join the namespaces, and gVisor lets nobody join
// a user namespace.
package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Request is a program to run.
type Request struct {
	Args []string `json:"args"` // its name first
	Dir  string   `json:"dir"`  // where it runs
	Term string   `json:"term,omitempty"`
}

// answer is how the program has ended.
type answer struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

// message is the largest one, in bytes: arguments above all.
const message = 128 << 10

// network of the sockets: one message is read as it was written.
const network = "unixpacket"

// Listen makes the socket at a path, for this user only.
func Listen(path string) (*net.UnixListener, error) {
	listener, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Runner runs a program with its three streams, and with the signals that come, until it
// has ended; when signals is closed nobody waits for it any more. It returns the exit
// status.
type Runner func(r Request, streams [3]*os.File, signals <-chan os.Signal) (int, error)

// Serve runs what is asked for at a listener, until that is closed.
func Serve(listener *net.UnixListener, run Runner) {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			a, err := serve(conn, run)
			if err != nil {
				a = answer{Error: err.Error()}
			}
			if data, err := json.Marshal(a); err == nil {
				_, _ = conn.Write(data) // who has asked may be gone
			}
		}()
	}
}

func serve(conn *net.UnixConn, run Runner) (answer, error) {
	r, streams, err := receive(conn)
	if err != nil {
		return answer{}, err
	}
	defer func() {
		for _, stream := range streams {
			stream.Close()
		}
	}()
	signals := make(chan os.Signal, 16)
	go func() {
		defer close(signals)
		number := make([]byte, 1)
		for {
			if n, err := conn.Read(number); n == 0 || err != nil {
				return
			}
			select {
			case signals <- syscall.Signal(number[0]):
			default: // it takes none
			}
		}
	}()
	status, err := run(r, streams, signals)
	return answer{Status: status}, err
}

func receive(conn *net.UnixConn) (r Request, streams [3]*os.File, err error) {
	data, control := make([]byte, message), make([]byte, unix.CmsgSpace(len(streams)*4))
	n, controls, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return r, streams, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	var fds []int
	if err == nil && len(messages) > 0 {
		fds, err = unix.ParseUnixRights(&messages[0])
	}
	if err == nil && len(fds) != len(streams) {
		err = fmt.Errorf("%d streams came", len(fds))
	}
	if err == nil {
		err = json.Unmarshal(data[:n], &r)
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return r, streams, fmt.Errorf("understand a request: %w", err)
	}
	for i, fd := range fds {
		unix.CloseOnExec(fd)
		streams[i] = os.NewFile(uintptr(fd), "stream")
	}
	return r, streams, nil
}

// ErrNobody is wrapped by the error about a socket where nobody runs anything.
var ErrNobody = errors.New("nobody is inside")

// Run asks at a socket for a program to be run with three streams. Signals that come are
// passed on. It returns the exit status.
func Run(path string, r Request, streams [3]*os.File, signals <-chan os.Signal) (int, error) {
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	defer conn.Close()
	data, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	if len(data) > message {
		return 0, fmt.Errorf("run %s: its arguments are longer than %d bytes", r.Args[0], message)
	}
	fds := make([]int, len(streams))
	for i, stream := range streams {
		fds[i] = int(stream.Fd())
	}
	if _, _, err := conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil); err != nil {
		return 0, fmt.Errorf("ask for %s to be run: %w", r.Args[0], err)
	}
	ended := make(chan struct{})
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			select {
			case <-ended:
				return
			case s := <-signals:
				if number, ok := s.(syscall.Signal); ok {
					_, _ = conn.Write([]byte{byte(number)}) // it has ended meanwhile
				}
			}
		}
	})
	reply := make([]byte, message)
	n, err := conn.Read(reply)
	close(ended)
	passing.Wait()
	var a answer
	if err == nil {
		err = json.Unmarshal(reply[:n], &a)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("wait for %s: %w", r.Args[0], err)
	case a.Error != "":
		return 0, errors.New(a.Error)
	}
	return a.Status, nil
}
