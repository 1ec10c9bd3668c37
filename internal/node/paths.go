package node

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"

	"k3s9p/internal/hint"
	"k3s9p/internal/journal"
)

// DefaultData is where a node keeps everything that is its own.
const DefaultData = "/var/lib/k3s9p"

// Paths are the places of a node, all below one directory.
type Paths struct{ Data string }

func (p Paths) at(elem ...string) string { return filepath.Join(append([]string{p.Data}, elem...)...) }

// What lasts: the cluster's settings, its database and keys, the images, volumes.
func (p Paths) cluster() string         { return p.at("cluster.json") }
func (p Paths) bundles() string         { return p.at("bundle") }
func (p Paths) pki() string             { return p.at("pki") }
func (p Paths) pkiFile(n string) string { return p.at("pki", n) }
func (p Paths) database() string        { return p.at("db", "state.db") }
func (p Paths) applied() string         { return p.at("db", "manifests.json") } // what that cluster has of the manifests
func (p Paths) containerd() string      { return p.at("containerd") }
func (p Paths) kubelet() string         { return p.at("kubelet") }
func (p Paths) kubeconfigs() string     { return p.at("kubeconfig") }
func (p Paths) conf(user string) string { return p.at("kubeconfig", user+".conf") }

// Logs is the directory of the programs' logs.
func (p Paths) Logs() string { return p.at("log") }

// Kubeconfig is that of the cluster's administrator.
func (p Paths) Kubeconfig() string { return p.conf("admin") }

// KubectlCache is where kubectl keeps what it knows of the apiserver, instead of in
// the user's home.
func (p Paths) KubectlCache() string { return p.at("cache", "kubectl") }

// What is made anew at each start.
func (p Paths) run(elem ...string) string { return p.at(append([]string{"run"}, elem...)...) }
func (p Paths) etc(elem ...string) string { return p.at(append([]string{"run", "etc"}, elem...)...) }
func (p Paths) temporary() string         { return p.run("tmp") }
func (p Paths) state() string             { return p.run("state.json") }
func (p Paths) datastore() string         { return p.run("datastore", "kine.sock") }

// Containerd is the address of the container runtime.
func (p Paths) Containerd() string { return p.run("containerd", "containerd.sock") }

// sockets are the directories in which the node's programs make sockets and named pipes.
func (p Paths) sockets() []string {
	dirs := []string{filepath.Dir(p.datastore()), filepath.Dir(p.Containerd()), p.run("containerd-default"), p.temporary()}
	for _, name := range []string{"pod-resources", "device-plugins", "plugins", "plugins_registry"} {
		dirs = append(dirs, filepath.Join(p.kubelet(), name))
	}
	return dirs
}

// commands is where the supervisor runs programs for who is outside.
func (p Paths) commands() string { return p.run("containerd", "commands.sock") }

// RuntimeAddress is the address of the container runtime for a program that is not in
// the node's mount namespace.
func (p Paths) RuntimeAddress() string { return p.outside(p.Containerd()) }

// outside is the path of a socket for who is not in the node's mount namespace: where the
// data directory has no sockets, it is in a tmpfs in there.
func (p Paths) outside(socket string) string {
	if _, err := os.Stat(socket); err != nil {
		if pid := supervisorOf(p); pid != 0 {
			return filepath.Join("/proc", strconv.Itoa(pid), "root", socket)
		}
	}
	return socket
}

// lock is held by the supervisor while it lives.
func (p Paths) lock() string { return p.at("lock") }

func (p Paths) journal() journal.Journal { return journal.Journal{Dir: p.at("fixes")} }

// bound are the directories that programs have built in, and what is mounted there
// in the node's mount namespace. Where they do not exist they are made, and removed
// again by down.
func (p Paths) bound(d distribution) map[string]string {
	bound := map[string]string{
		"/run/containerd":     p.run("containerd-default"), // the shims' sockets, runc's state
		"/var/lib/kubelet":    p.kubelet(),                 // device plugins; what pods expect of a node
		"/var/lib/cni":        p.run("cni"),                // libcni's cache of results
		"/var/log/pods":       p.at("log", "pods"),
		"/var/log/containers": p.at("log", "containers"),
		"/run/mount":          p.run("mount"), // what mount(8) notes down
	}
	maps.Copy(bound, d.bound(p))
	return bound
}

// socketLimit is how long the path of a Unix socket may be to containerd (pkg/sys/
// socket_unix.go; to Linux 107, unix(7)), less what it adds to its own.
const socketLimit = 104 - len(".ttrpc")

func (p Paths) check() error {
	if !filepath.IsAbs(p.Data) || filepath.Clean(p.Data) == "/" {
		return hint.Add(fmt.Errorf("the data directory %q is not an absolute path below /", p.Data), "--data-dir %s", DefaultData)
	}
	if len(p.Containerd()) > socketLimit {
		return hint.Add(fmt.Errorf("the data directory %s is too long a path: sockets below it may have %d bytes", p.Data, socketLimit), "--data-dir %s", DefaultData)
	}
	return nil
}
