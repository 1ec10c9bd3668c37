package node

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"k3s9p/internal/probe"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func TestNetworksAvoidWhatTheMachineHasRoutesTo(t *testing.T) {
	for _, c := range []struct {
		routes, others []string
		o              Options
		pods, services string
		fails          string
	}{
		{pods: "10.42.0.0/16", services: "10.43.0.0/16"},
		{routes: []string{"192.0.2.0/24"}, pods: "10.42.0.0/16", services: "10.43.0.0/16"},
		{routes: []string{"10.43.7.0/24"}, pods: "10.142.0.0/16", services: "10.143.0.0/16"},
		{others: []string{"192.0.2.1/32", "10.43.0.10/32"}, pods: "10.142.0.0/16", services: "10.143.0.0/16"},
		{others: []string{"10.43.0.10/32"}, o: Options{ServiceCIDR: "10.43.0.0/16"}, pods: "10.42.0.0/16", services: "10.43.0.0/16"},
		{routes: []string{"10.0.0.0/8"}, pods: "172.28.0.0/16", services: "172.29.0.0/16"},
		{routes: []string{"10.0.0.0/8", "172.16.0.0/12"}, pods: "192.168.240.0/22", services: "192.168.244.0/22"},
		{o: Options{ServiceCIDR: "10.42.0.0/24"}, pods: "10.142.0.0/16", services: "10.42.0.0/24"},
		{o: Options{ClusterCIDR: "10.9.0.0/16", ServiceCIDR: "10.9.1.0/24"}, fails: "overlap"},
		{routes: []string{"10.9.1.0/24"}, o: Options{ClusterCIDR: "10.9.0.0/16"}, fails: "route to 10.9.1.0/24"},
		{o: Options{ClusterCIDR: "10.9.0.1/16"}, fails: "bits set behind its prefix"},
		{o: Options{ClusterCIDR: "10.9.0.0/30"}, fails: "prefix of 30 bits"},
		{o: Options{ClusterCIDR: "fd00::/64"}, fails: "not IPv4"},
		{o: Options{ServiceCIDR: "services"}, fails: "not a network"},
		{o: Options{NodeName: "Not_a_name"}, fails: "cannot be the name of a node"},
	} {
		o := c.o
		if o.NodeName == "" {
			o.NodeName = "test"
		}
		got, err := choose(o, "kubernetes", prefixes(c.routes...), prefixes(c.others...))
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) || !strings.Contains(err.Error(), "hint: ") {
				t.Errorf("%+v with %v: %v", c.o, c.routes, err)
			}
		case err != nil || got.ClusterCIDR.String() != c.pods || got.ServiceCIDR.String() != c.services:
			t.Errorf("%+v with %v: pods in %v, Services in %v, %v", c.o, c.routes, got.ClusterCIDR, got.ServiceCIDR, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	c := Cluster{ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16")}
	for what, pair := range map[string][2]string{
		"pods":      {c.PodCIDR().String(), "10.42.0.0/24"},
		"node":      {c.Address().String(), "10.42.0.1"},
		"apiserver": {c.APIService().String(), "10.43.0.1"},
		"DNS":       {c.DNS().String(), "10.43.0.10"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("the address of %s is %s, not %s", what, pair[0], pair[1])
		}
	}
}

func TestADataDirectoryKeepsItsCluster(t *testing.T) {
	p := Paths{t.TempDir()}
	first, err := settle(p, Options{NodeName: "first"}, "kubernetes", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.save(p); err != nil {
		t.Fatal(err)
	}
	if again, err := settle(p, Options{}, "kubernetes", nil); err != nil || again != first {
		t.Errorf("the second time it is %+v, %v", again, err)
	}
	for _, c := range []struct {
		o            Options
		distribution string
		routes       []netip.Prefix
		fails        string
	}{
		{o: Options{NodeName: "second"}, distribution: "kubernetes", fails: "node name first, not second"},
		{o: Options{ClusterCIDR: "10.9.0.0/16"}, distribution: "kubernetes", fails: "cluster CIDR"},
		{distribution: "k3s", fails: "distribution kubernetes, not k3s"},
		{distribution: "kubernetes", routes: prefixes("10.43.0.0/16"), fails: "now overlaps"},
	} {
		if _, err := settle(p, c.o, c.distribution, c.routes); err == nil || !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := os.WriteFile(p.cluster(), []byte(`{"format": 3}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := settle(p, Options{}, "kubernetes", nil); err == nil || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("a directory of a newer version: %v", err)
	}
	if err := os.WriteFile(p.cluster(), []byte(`{`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := settle(p, Options{}, "kubernetes", nil); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("a damaged directory: %v", err)
	}
}

func TestUpgrade(t *testing.T) {
	p := Paths{t.TempDir()}
	for _, c := range []struct {
		there, here, then Versions
		refused           bool
	}{
		{here: Versions{"", "v1.36.3+k3s9p.0123"}, then: Versions{"", "v1.36.3+k3s9p.0123"}}, // of before there were versions
		{there: Versions{"v0.1.0", "v1.36.3"}, here: Versions{"v0.2.0", "v1.36.4"}, then: Versions{"v0.2.0", "v1.36.4"}},
		{there: Versions{"v0.1.0", "v1.36.3"}, here: Versions{"v0.1.0", "v1.36.3"}, then: Versions{"v0.1.0", "v1.36.3"}},
		{there: Versions{"v0.1.0", "v1.36.3+a"}, here: Versions{"v0.1.0-snapshot.0123.dirty", "v1.36.3+b"}, then: Versions{"v0.1.0-snapshot.0123.dirty", "v1.36.3+b"}},
		{there: Versions{"v0.1.0", "v1.36.3"}, here: Versions{"", "v1.36.3"}, then: Versions{"v0.1.0", "v1.36.3"}},
		{there: Versions{"v0.2.0", "v1.36.3"}, here: Versions{"v0.1.9", "v1.36.3"}, refused: true},
		{there: Versions{"v0.10.0", "v1.36.3"}, here: Versions{"v0.9.0", "v1.36.3"}, refused: true},
		{there: Versions{"", "v1.37.0"}, here: Versions{"", "v1.36.3"}, refused: true},
		{there: Versions{"", "v1.36.4+k3s9p.0"}, here: Versions{"v9.0.0", "v1.36.3+k3s9p.9"}, refused: true},
	} {
		got, err := Cluster{Versions: c.there}.upgrade(p, c.here)
		if (err != nil) != c.refused || err == nil && got.Versions != c.then {
			t.Errorf("%s over %s: %s, %v", c.here, c.there, got.Versions, err)
		}
	}
}

func TestDataDirectories(t *testing.T) {
	for dir, fails := range map[string]string{
		DefaultData:                           "",
		"/":                                   "not an absolute path below /",
		"relative":                            "not an absolute path below /",
		"/very" + strings.Repeat("/long", 20): "too long a path",
		// With the longest socket, /run/containerd/containerd.sock.ttrpc, 104 bytes and 105.
		"/" + strings.Repeat("x", 66): "",
		"/" + strings.Repeat("x", 67): "too long a path",
	} {
		err := Paths{dir}.check()
		if (err == nil) != (fails == "") || err != nil && !strings.Contains(err.Error(), fails) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// Down with purge removes a directory as a whole: it has to be a node's.
func TestPurgeLeavesWhatIsNoNodes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := (Paths{dir}).ours(); err == nil {
		t.Error("a directory with a thesis was taken for a node's")
	}
	if err := (Paths{t.TempDir()}).ours(); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
	// What a user has prepared is no reason not to begin, but one not to remove it.
	dir = t.TempDir()
	for _, name := range []string{"manifests", ".tmp-cluster.json1", ".probe-12-3"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := (Paths{dir}).ours("manifests", "lost+found"); err != nil {
		t.Errorf("a directory with manifests, for up: %v", err)
	}
	if err := (Paths{dir}).ours(); err == nil {
		t.Error("a user's manifests were taken for a node's")
	}
}

// A data directory that somebody has mounted stays, without what was in it.
func TestRemoveDataOfAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to mount needs root")
	}
	outside, data := t.TempDir(), filepath.Join(t.TempDir(), "data")
	if err := errors.Join(os.Mkdir(data, 0o755), os.MkdirAll(filepath.Join(outside, "bundle", "bin"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(outside, data, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(data, unix.MNT_DETACH) })
	if err := removeData(data); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{data, outside} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s has %v, %v", dir, entries, err)
		}
	}
	if err := unix.Unmount(data, 0); err != nil {
		t.Errorf("it is mounted no more: %v", err)
	}
	for range 2 {
		if err := removeData(data); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a data directory that is not mounted stays: %v", err)
	}
}

func TestDirectoriesThatWereMadeAreRemovedIfEmpty(t *testing.T) {
	dir := t.TempDir()
	p := Paths{filepath.Join(dir, "data")}
	made := []string{filepath.Join(dir, "a"), filepath.Join(dir, "a", "b"), filepath.Join(dir, "c"), filepath.Join(dir, "never")}
	for _, name := range made[:3] {
		if err := os.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "c", "theirs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.journal().Record("directories", directoriesChange{made}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := unbind(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(made[0]); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", made[0], err)
	}
	if _, err := os.Stat(filepath.Join(dir, "c", "theirs")); err != nil {
		t.Errorf("what somebody else put there is gone: %v", err)
	}
}

// A node that was killed has to be found by down, whatever of it is left.
func TestWhatIsLeftIsPending(t *testing.T) {
	p := Paths{t.TempDir()}
	if p.pending() {
		t.Error("an empty directory has something to take back")
	}
	if err := p.journal().Record("nat", natChange{}); err != nil {
		t.Fatal(err)
	}
	if !p.pending() {
		t.Error("a recorded change is not noticed")
	}
	if err := p.journal().Forget("nat"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.run(), 0o755); err != nil {
		t.Fatal(err)
	}
	if !p.pending() {
		t.Error("what a killed node left is not noticed")
	}
}

// The cgroup has the same name for each data directory: one that this node has not
// made since the machine was started is another one's, whose pods may run in it.
func TestCgroupsOfOthersAreNotOurs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a cgroup needs root")
	}
	name := "/k3s9p-test-of-node"
	hierarchies, _ := filepath.Glob(probe.CgroupRoot + "/*/cgroup.procs")
	if len(hierarchies) == 0 {
		t.Skip("no cgroups here")
	}
	dir := filepath.Dir(hierarchies[0]) + name
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	p := Paths{t.TempDir()}
	if ours := nodeCgroups(p); len(ours) > 0 {
		t.Errorf("without a record %v are ours", ours)
	}
	if err := p.journal().Record("cgroups", cgroupsChange{Name: name}); err != nil {
		t.Fatal(err)
	}
	if ours := nodeCgroups(p); len(ours) != 1 || ours[0] != dir {
		t.Errorf("of this boot %v are ours", ours)
	}
	if err := os.WriteFile(filepath.Join(p.at("fixes"), "cgroups.json"), []byte(`{"boot":"earlier","change":{"name":"`+name+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if ours := nodeCgroups(p); len(ours) > 0 {
		t.Errorf("after a reboot %v are ours", ours)
	}
}
