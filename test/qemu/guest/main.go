// Command guest is process 1 of a virtual machine whose root is a 9p share: first in
// the initial file system, where it loads the modules and mounts the root, then in
// that, where it runs the agent.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/test/qemu/agent"
)

// self is where the root has this program.
const self = "/usr/local/bin/guest"

const searchPath = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func main() {
	var err error
	switch {
	case os.Args[0] == "/init":
		err = enterRoot()
	case len(os.Args) == 2 && os.Args[1] == "init":
		err = settle()
	case len(os.Args) == 2 && os.Args[1] == "agent":
		err = serve()
	default:
		err = errors.New("usage: guest init, guest agent")
	}
	fmt.Fprintln(os.Stderr, "guest:", err)
	if os.Getpid() == 1 {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	os.Exit(1)
}

// mounted is a filesystem of the machine.
type mounted struct {
	source, at, fstype, options string
	flags                       uintptr
}

func (m mounted) mount() error {
	if err := os.MkdirAll(m.at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.at, m.fstype, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.fstype, m.at, err)
	}
	return nil
}

// parameter is one of the kernel's command line.
func parameter(name string) (string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for _, field := range strings.Fields(string(line)) {
		if value, ok := strings.CutPrefix(field, name+"="); ok {
			return value, nil
		}
	}
	return "", fmt.Errorf("the command line of the kernel has no %s", name)
}

// enterRoot is what an initial file system does.
func enterRoot() error {
	for _, m := range []mounted{{"devtmpfs", "/dev", "devtmpfs", "", 0}, {"proc", "/proc", "proc", "", 0}} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	modules, err := filepath.Glob("/modules/*.ko") // in the order of their names
	if err != nil {
		return err
	}
	for _, name := range modules {
		if err := load(name); err != nil {
			return err
		}
	}
	options, err := parameter("root.options")
	if err != nil {
		return err
	}
	if err := (mounted{"root", "/root", "9p", options, 0}).mount(); err != nil {
		return err
	}
	for _, name := range []string{"/dev", "/proc"} {
		if err := unix.Mount(name, "/root"+name, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", name, err)
		}
	}
	// As switch_root(8): the initial file system stays below, and nothing leads to it.
	err = errors.Join(os.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/"))
	if err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return fmt.Errorf("run %s: %w", self, unix.Exec(self, []string{self, "init"}, []string{searchPath}))
}

func load(module string) error {
	file, err := os.Open(module)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", module, err)
	}
	return nil
}

// settle is process 1 in the root. It does what an init would, and collects what others
// leave.
func settle() error {
	cgroups := mounted{"cgroup", "/sys/fs/cgroup", "cgroup2", "", 0}
	for _, m := range []mounted{
		{"sysfs", "/sys", "sysfs", "", 0}, cgroups, {"devpts", "/dev/pts", "devpts", "ptmxmode=666", 0},
		{"tmpfs", "/dev/shm", "tmpfs", "", 0}, {"tmpfs", "/run", "tmpfs", "mode=755", 0}, {"tmpfs", "/tmp", "tmpfs", "", 0},
	} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"modprobe", "virtio_console"}, {"modprobe", "virtio_net"},
		{"ip", "link", "set", "lo", "up"}, {"ip", "link", "set", "eth0", "up"},
		// Those of QEMU's user network.
		{"ip", "address", "add", "10.0.2.15/24", "dev", "eth0"}, {"ip", "route", "add", "default", "via", "10.0.2.2"},
	} {
		if output, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", args, err, output)
		}
	}
	if err := unix.Sethostname([]byte("machine")); err != nil {
		return fmt.Errorf("set the name of the machine: %w", err)
	}
	cmd := exec.Command(self, "agent")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == cmd.Process.Pid {
			return fmt.Errorf("the agent has ended: %d", status)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// serve finds the port, and answers.
func serve() error {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return err
	}
	i := slices.IndexFunc(names, func(name string) bool {
		text, err := os.ReadFile(name)
		return err == nil && strings.TrimSpace(string(text)) == agent.Port
	})
	if i < 0 {
		return fmt.Errorf("there is no port %s", agent.Port)
	}
	port, err := os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(names[i]))), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	for { // a port that nobody has open reads as one that has ended
		err := agent.Serve(port, []string{searchPath, "HOME=/root"})
		fmt.Fprintln(os.Stderr, "guest agent:", err)
		time.Sleep(100 * time.Millisecond)
	}
}
