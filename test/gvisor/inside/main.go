// Command inside is what the tests run in a sandbox besides Debian's programs: its
// init, the fix sequence of package blocker, parts of package node's bring-up, and a
// few questions.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/blocker"
	"k3s9p/internal/config"
	"k3s9p/internal/journal"
	"k3s9p/internal/node"
	"k3s9p/internal/probe"
	"k3s9p/test/gvisor/inside/fixed"
)

const usage = `usage:
  inside init                      process 1
  inside http METHOD URL           what a URL answers
  inside stream URL                what a container reads and prints: its exec or attach at a kubelet
  inside listen ADDRESS            holds a TCP port until it is ended
  inside statfs PATH               type, bytes (all, free, available), inodes (all, free)
  inside plan SETTINGS             what would be done
  inside fix SETTINGS ID,…         do it, except about those blockers, and write the configuration
  inside cri-ready SETTINGS        whether containerd's CRI service is there
  inside import SETTINGS ARCHIVE…  give images to containerd
  inside fuse-overlayfs            whether that works
  inside undo                      take the fixes back
  inside snapshot DIR              what a node could leave, except for files in DIR
  inside hang DIR FILE             here: mount a filesystem that answers no statfs once FILE exists`

// Where the sandbox has the node: its data, programs and configuration.
const (
	data          = "/var/lib/k3s9p"
	programs      = "/usr/local/bin"
	plugins       = "/usr/local/lib/cni"
	configuration = "/etc/k3s9p"
)

func main() {
	probe.Init()
	if len(os.Args) < 2 {
		fail(usage)
	}
	switch args := os.Args[2:]; {
	case os.Args[1] == "init":
		reap()
	case os.Args[1] == "http" && len(args) == 2:
		ask(args[0], args[1])
	case os.Args[1] == "listen" && len(args) == 1:
		listen(args[0])
	case os.Args[1] == "stream" && len(args) == 1:
		check(stream(args[0]))
	case os.Args[1] == "statfs" && len(args) == 1:
		statfs(args[0])
	case os.Args[1] == "plan" && len(args) == 1:
		plan, err := blocker.Make(context.Background(), host(settings(args[0])))
		check(err)
		show(plan)
	case os.Args[1] == "fix" && len(args) == 2:
		fix(settings(args[0]), args[1])
	case os.Args[1] == "cri-ready" && len(args) == 1:
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		check(node.AskRuntime(ctx, settings(args[0]).Containerd))
	case os.Args[1] == "import" && len(args) > 1:
		for _, archive := range args[1:] {
			check(node.ImportImages(context.Background(), filepath.Join(programs, "ctr"), os.Environ(), settings(args[0]).Containerd, archive))
		}
	case os.Args[1] == "undo" && len(args) == 0:
		check(blocker.Undo(fixes))
	case os.Args[1] == "fuse-overlayfs" && len(args) == 0:
		err := probe.FuseOverlay(context.Background(), data)
		if err == nil {
			err = errors.New("it works")
		}
		fmt.Println(err)
	case os.Args[1] == "snapshot" && len(args) == 1:
		snapshot(args[0])
	case os.Args[1] == "hang" && len(args) == 2:
		check(hang(args[0], args[1]))
	default:
		fail(usage)
	}
}

func settings(text string) (s config.Settings) {
	check(json.Unmarshal([]byte(text), &s))
	return s
}

func host(s config.Settings) *blocker.Host {
	return &blocker.Host{Data: data, Programs: programs, Plugins: plugins, Settings: s}
}

// fixes is the journal.
var fixes = journal.Journal{Dir: filepath.Join(data, "fixes")}

// fix does what bringing up a node does before the programs start. The mounts last as
// long as the sandbox.
func fix(s config.Settings, except string) {
	check(os.MkdirAll(data, 0o755))
	plan, err := blocker.Make(context.Background(), host(s), strings.FieldsFunc(except, func(r rune) bool { return r == ',' })...)
	check(err)
	check(plan.Apply(fixes, func(string) bool { return true }))
	files, err := plan.Settings.Write(configuration)
	check(err)
	show(fixed.Machine{Plan: plan, Files: files})
}

func show(v any) { check(json.NewEncoder(os.Stdout).Encode(v)) }

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

// ask prints what a URL answers. The kubelet's certificate is its own. Who waits for the
// answer has a shorter limit of their own.
func ask(method, url string) {
	request, err := http.NewRequest(method, url, nil)
	check(err)
	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	response, err := client.Do(request)
	check(err)
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	check(err)
	if response.StatusCode != http.StatusOK {
		fail(url + ": " + response.Status)
	}
}

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

func listen(address string) {
	listener, err := net.Listen("tcp", address)
	check(err)
	fmt.Println("listening at", listener.Addr())
	for {
		conn, err := listener.Accept()
		check(err)
		check(conn.Close())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, "inside: "+message)
	os.Exit(1)
}
