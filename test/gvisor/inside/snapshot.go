package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
)

// snapshot prints what a node could leave on a machine, a line each, in a constant
// order: processes, mounts, network devices, addresses, routes, nat rules, cgroups,
// kernel parameters, and files except for those below a directory.
func snapshot(except string) {
	var lines []string
	add := func(kind string, values ...any) {
		lines = append(lines, kind+" "+strings.TrimSuffix(fmt.Sprintln(values...), "\n"))
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(err)
	for _, name := range processes {
		line, err := os.ReadFile(name)
		if text := strings.ReplaceAll(string(line), "\x00", " "); err == nil && !strings.Contains(text, "inside snapshot") {
			comm, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "comm"))
			add("process", strings.TrimSpace(string(comm)), text)
		}
	}
	mounts, err := mountinfo.GetMounts(nil)
	check(err)
	for _, m := range mounts {
		add("mount", m.Mountpoint, m.FSType, m.Root, m.Optional)
	}
	links, err := netlink.LinkList()
	check(err)
	for _, link := range links {
		add("device", link.Attrs().Name, link.Attrs().MTU)
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		check(err)
		for _, address := range addresses {
			add("address", link.Attrs().Name, address.IPNet)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	check(err)
	for _, route := range routes {
		add("route", route.Dst, route.Gw, route.LinkIndex)
	}
	rules, err := exec.Command("iptables-legacy", "-t", "nat", "-S").CombinedOutput()
	if err != nil {
		add("rules", err)
	}
	for line := range strings.Lines(string(rules)) {
		add("rule", strings.TrimSpace(line))
	}
	forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	add("ip_forward", strings.TrimSpace(string(forward)))
	walk("/sys/fs/cgroup", nil, func(path string, entry fs.DirEntry) {
		if entry.IsDir() {
			add("cgroup", path)
		}
	})
	walk("/", []string{"/proc", "/sys", except}, func(path string, entry fs.DirEntry) {
		size := int64(0)
		if info, err := entry.Info(); err == nil && entry.Type().IsRegular() {
			size = info.Size()
		}
		add("file", path, entry.Type(), size)
	})
	slices.Sort(lines)
	fmt.Println(strings.Join(lines, "\n"))
}

func walk(root string, except []string, visit func(string, fs.DirEntry)) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if slices.Contains(except, path) {
			return fs.SkipDir
		}
		if err == nil {
			visit(path, entry)
		}
		return nil
	})
}
