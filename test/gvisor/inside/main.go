// Command inside is what the tests run in a sandbox that has no shell: its init,
// and the few questions that they ask there.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fail("usage: inside init | link TARGET NAME | read FILE | get URL | statfs PATH")
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "init":
		reap()
	case "link":
		check(os.Symlink(args[0], args[1]))
	case "read":
		data, err := os.ReadFile(args[0])
		check(err)
		_, err = os.Stdout.Write(data)
		check(err)
	case "get":
		get(args[0])
	case "statfs":
		statfs(args[0])
	default:
		fail("unknown command " + os.Args[1])
	}
}

// reap is process 1: it collects what others leave, until it is told to end.
func reap() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGCHLD)
	for s := range signals {
		if s == unix.SIGTERM {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}

func get(url string) {
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(url)
	check(err)
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	check(err)
	if response.StatusCode != http.StatusOK {
		fail(url + ": " + response.Status)
	}
}

// statfs prints type, capacity, free and available bytes, inodes and free inodes.
func statfs(path string) {
	var s unix.Statfs_t
	check(unix.Statfs(path, &s))
	unit := uint64(s.Frsize)
	fmt.Println(s.Type, unit*s.Blocks, unit*s.Bfree, unit*s.Bavail, s.Files, s.Ffree)
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, "inside: "+message)
	os.Exit(1)
}
