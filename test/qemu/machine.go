// Package qemu starts virtual machines with a Linux kernel whose root is a directory
// here, shared by virtio-9p. They have no network but a wire to QEMU's own, which lets
// nothing through; what runs in them is asked for over a serial port.
package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k3s9p/internal/proof/leftover"
	"k3s9p/internal/rmtree"
	"k3s9p/test/gvisor"
	"k3s9p/test/qemu/agent"
)

// Security is how QEMU keeps owners and kinds of files (qemu(1), -fsdev
// security_model).
type Security string

const (
	// Passthrough makes files as the guest asks. Special files are refused, sockets
	// among them.
	Passthrough Security = "passthrough"
	// MappedXattr keeps owners and kinds in extended attributes of regular files.
	MappedXattr Security = "mapped-xattr"
)

// Cache is that of Linux' 9p client (kernel documentation, filesystems/9p).
type Cache string

const (
	NoCache   Cache = "none" // no shared mappings
	MmapCache Cache = "mmap"
)

// Options describe a machine.
type Options struct {
	Security Security
	Cache    Cache
	Files    map[string]string // path in the root → file here, or text after a leading "="
	// DiskGiB is the size of an empty ext4 filesystem, in GiB, on the disk [Disk]; with 0
	// there is none.
	DiskGiB int
}

// Disk is the device of a machine's disk, when virtio_blk is loaded.
const Disk = "/dev/vda"

// memory of a machine, in MiB, and its processors.
const (
	memory     = 3072
	processors = 2
)

// bootLimit is how long a machine may take until it answers: without KVM the processor
// is emulated.
const bootLimit = 3 * time.Minute

// Machine is a running virtual machine.
type Machine struct {
	t       *testing.T
	dir     string
	process *exec.Cmd
	ended   chan struct{} // closed when the process has
	port    net.Conn
	answers *json.Decoder
}

// Start boots a machine.
func Start(t *testing.T, options Options) *Machine {
	t.Helper()
	m := &Machine{t: t, dir: gvisor.Directory(t)}
	t.Cleanup(m.stop)
	kernel, err := m.makeRoot(options)
	m.must(err)
	m.must(m.makeInitramfs(kernel))
	m.must(m.makeDisk(options.DiskGiB))
	m.must(m.boot(kernel, options))
	return m
}

func (m *Machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// boot starts QEMU, with KVM where that is, and waits for the agent.
func (m *Machine) boot(kernel kernel, options Options) error {
	mount := fmt.Sprintf("trans=virtio,version=9p2000.L,msize=524288,cache=%s", options.Cache)
	m.process = exec.Command("qemu-system-x86_64",
		"-name", m.path("machine"), "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", fmt.Sprint(processors), "-m", fmt.Sprint(memory), "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "file:"+m.path("console.log"), "-kernel", kernel.image, "-initrd", m.path("initramfs"),
		"-append", "console=ttyS0 panic=-1 quiet net.ifnames=0 root.options="+mount,
		"-fsdev", fmt.Sprintf("local,id=root,path=%s,security_model=%s,multidevs=remap", m.root(), options.Security),
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-device", "virtio-rng-pci",
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,server=on,wait=off,path="+m.path("agent"),
		"-device", "virtserialport,chardev=agent,name="+agent.Port)
	if options.DiskGiB > 0 {
		m.process.Args = append(m.process.Args, "-drive", "if=virtio,format=raw,cache=unsafe,file="+m.path("disk.img"))
	}
	log, err := os.Create(m.path("qemu.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	m.process.Stdout, m.process.Stderr = log, log
	m.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := leftover.Start(m.dir, m.process); err != nil {
		return fmt.Errorf("start a virtual machine: %w", err)
	}
	m.ended = make(chan struct{})
	go func() { _ = leftover.Wait(m.dir, m.process); close(m.ended) }()
	start := time.Now()
	for {
		err := m.connect(time.Until(start.Add(bootLimit)))
		if err == nil {
			m.t.Logf("the machine answered after %.1f s", time.Since(start).Seconds())
			return nil
		}
		select {
		case <-m.ended:
			return fmt.Errorf("the machine has ended: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(start) > bootLimit {
			return fmt.Errorf("the machine does not answer: %w", err)
		}
	}
}

// makeDisk makes a filesystem in a sparse file.
func (m *Machine) makeDisk(gib int) error {
	if gib == 0 {
		return nil
	}
	for _, args := range [][]string{{"truncate", "--size", fmt.Sprintf("%dG", gib)}, {"mkfs.ext4", "-q", "-m", "0"}} {
		if output, err := exec.Command(args[0], append(args[1:], m.path("disk.img"))...).CombinedOutput(); err != nil {
			return fmt.Errorf("make a disk: %v: %w: %s", args, err, output)
		}
	}
	return nil
}

// connect connects to the port, which QEMU opens at once, and waits until the agent
// answers there.
func (m *Machine) connect(within time.Duration) error {
	port, err := net.Dial("unix", m.path("agent"))
	if err != nil {
		return err
	}
	m.port, m.answers = port, json.NewDecoder(port)
	if _, err = m.ask(agent.Request{}, within); err != nil {
		port.Close()
	}
	return err
}

func (m *Machine) ask(r agent.Request, within time.Duration) (a agent.Answer, err error) {
	if err := m.port.SetDeadline(time.Now().Add(within)); err != nil {
		return a, err
	}
	if err := json.NewEncoder(m.port).Encode(r); err != nil {
		return a, fmt.Errorf("ask the agent: %w", err)
	}
	if err := m.answers.Decode(&a); err != nil {
		return a, fmt.Errorf("the agent's answer: %w", err)
	}
	return a, nil
}

// Try runs a program in the machine that may fail. It returns what that printed, on
// both outputs.
func (m *Machine) Try(within time.Duration, args ...string) (string, error) {
	a, err := m.ask(agent.Request{Args: args, Within: within}, within+10*time.Second)
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	return a.Output, err
}

// Must runs a program that has to succeed within a minute.
func (m *Machine) Must(args ...string) string {
	m.t.Helper()
	output, err := m.Try(time.Minute, args...)
	if err != nil {
		m.t.Fatalf("%v in the machine: %v\n%s", args, err, output)
	}
	return output
}

// Await waits for a condition.
func (m *Machine) Await(what string, within time.Duration, condition func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(within); !condition(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("%s did not happen within %v", what, within)
		}
	}
}

// stop ends the machine and removes its root.
func (m *Machine) stop() {
	if m.port != nil {
		m.port.Close()
	}
	if m.ended != nil {
		_ = m.process.Process.Kill()
		<-m.ended
	}
	if m.t.Failed() {
		m.t.Logf("the console of the machine:\n%s\n%s", tail(m.path("qemu.log")), tail(m.path("console.log")))
	}
	if err := rmtree.Tree(m.dir); err != nil {
		m.t.Error(err)
	}
}

// tail is the end of a log.
func tail(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	const most = 4000
	return strings.TrimSpace(string(data[max(0, len(data)-most):]))
}
