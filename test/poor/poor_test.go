package poor

import (
	"strings"
	"testing"
	"time"

	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// Root without one of the capabilities that a container may lack, and with an /etc that
// nobody can write to.
func TestCapabilities(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	c.Must("sh", "-c", "mount --bind /etc /etc && mount -o remount,bind,ro /etc")
	if output, err := c.Try(time.Minute, "touch", "/etc/new"); err == nil {
		t.Fatalf("/etc is not read-only: %s", output)
	}
	before := c.Snapshot()
	for _, missing := range []struct {
		capability string
		up         []string // further flags of up
		refuses    string   // the reason, or empty where the cluster comes up
	}{
		{"sys_admin", []string{"--rootless=never"}, "has not the privileges that a node needs"},
		{"net_admin", []string{"--rootless=never"}, "has not the privileges that a node needs"},
		{"sys_resource", nil, ""},
		{"net_raw", nil, ""},
	} {
		t.Run(missing.capability, func(t *testing.T) {
			run := func(args ...string) (string, error) {
				return c.Try(2*time.Minute, append([]string{"setpriv", "--bounding-set=-" + missing.capability, "--inh-caps=-" + missing.capability, cluster.Program}, args...)...)
			}
			checked, _ := run("check") // where there is no node it ends with an error
			if says := strings.Contains(checked, "root has no CAP_"+strings.ToUpper(missing.capability)); says != (missing.refuses != "") {
				t.Errorf("check prints %s", checked)
			}
			output, err := run(append([]string{"up", "--detach", "--images=" + cluster.Images}, missing.up...)...)
			if (err != nil) != (missing.refuses != "") || !strings.Contains(output, missing.refuses) {
				t.Errorf("up gives %v, and prints %s\ncheck printed %s", err, output, checked)
			}
			if output, err := run("down"); err != nil {
				t.Errorf("down gives %v, and prints %s", err, output)
			}
			c.Unchanged(before)
		})
	}
}

func TestFullDisk(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{DiskGiB: 1, AvailableMiB: 200})
	before := c.Snapshot()
	output, err := c.K3s9p("up", "--detach")
	if err == nil || !strings.Contains(output, "MB left, and the node needs") {
		t.Errorf("up gives %v, and prints %s", err, output)
	}
	if output, err := c.K3s9p("down", "--purge"); err != nil {
		t.Errorf("down gives %v, and prints %s", err, output)
	}
	c.Unchanged(before)
}

// With 512 MiB the node would be Ready, and its kubelet would start no pod.
func TestLittleMemory(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{MemoryMiB: 512})
	before := c.Snapshot()
	const missing = "the machine has 512 MiB, and a node needs 768 MiB"
	for _, command := range [][]string{{"check"}, {"up", "--dry-run"}, {"up", "--detach"}} {
		if output, err := c.K3s9p(command...); err == nil || !strings.Contains(output, missing) {
			t.Errorf("%v gives %v, and prints %s", command, err, output)
		}
	}
	if output, err := c.K3s9p("down", "--purge"); err != nil {
		t.Errorf("down gives %v, and prints %s", err, output)
	}
	c.Unchanged(before)
}
