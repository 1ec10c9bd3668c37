package linux9p

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
	"k3s9p/test/qemu"
)

// What a machine has for a user that is not root: their home, on ext4, a cgroup that is
// theirs, and a server outside of the node's namespaces.
const (
	home      = "/home/user"
	userData  = home + "/.local/share/k3s9p"
	shared    = "/usr/local/share/k3s9p"
	delegated = "/sys/fs/cgroup/user/delegated"
	server    = "10.0.2.15:9090"
)

// A pod whose container is a user of its own, in an image with a file of another one, with
// a volume of a group and with limits.
const userPod = `apiVersion: v1
kind: Pod
metadata: {name: several}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4321}
  volumes: [{name: shared, emptyDir: {}}]
  containers:
  - name: web
    image: "k3s9p.local/several:1"
    imagePullPolicy: Never
    securityContext: {runAsUser: 1002, runAsGroup: 1003}
    volumeMounts: [{name: shared, mountPath: /shared}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
`

type userMachine struct{ machine }

func startForUser(t *testing.T) userMachine {
	t.Helper()
	gvisor.Require(t)
	several := filepath.Join(t.TempDir(), "several.tar")
	tag, err := name.NewTag("k3s9p.local/several:1")
	if err == nil {
		err = tarball.WriteToFile(several, tag, gvisor.WithFileOf(t, gvisor.LoadWebImage(t), 1001))
	}
	if err != nil {
		t.Fatal(err)
	}
	m := userMachine{machine{qemu.Start(t, qemu.Options{Security: qemu.Passthrough, Cache: qemu.MmapCache, DiskGiB: 8, Files: map[string]string{
		shared + "/k3s9p":              gvisor.Program(contract.Launcher),
		shared + "/images/several.tar": several,
		shared + "/web":                gvisor.Program(contract.Web),
		shared + "/pod.yaml":           "=" + userPod,
		"/etc/passwd":                  "=root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::" + home + ":/bin/sh\n",
		"/etc/group":                   "=root:x:0:\nuser:x:1000:\n",
		"/etc/subuid":                  "=user:100000:65536\n",
		"/etc/subgid":                  "=user:100000:65536\n",
	}}), t}}
	m.Must("sh", "-c", `set -e
modprobe virtio_blk
modprobe tun
chmod 666 /dev/net/tun # as udev does (50-udev-default.rules)
mkdir -p /home
mount `+qemu.Disk+` /home
mkdir -p `+filepath.Dir(userData)+`
chown -R 1000:1000 `+home+`
for group in /sys/fs/cgroup/user `+delegated+`; do
  for c in cpu io memory pids; do echo +$c > ${group%/*}/cgroup.subtree_control; done
  mkdir $group
done
`+shared+`/web serve `+server+` >/dev/null 2>&1 &`)
	return m
}

// delegate is what systemd does for a unit with Delegate=.
func (m userMachine) delegate() {
	m.t.Helper()
	m.Must("sh", "-c", `cd "$0"; chown 1000:1000 . cgroup.procs cgroup.subtree_control cgroup.threads`, delegated)
}

// as runs k3s9p as the user, who is in a cgroup.
func (m userMachine) as(cgroup string, args ...string) (string, error) {
	const enter = `echo $$ > "$0/cgroup.procs" && export HOME=` + home + ` && cd && exec setpriv --reuid=1000 --regid=1000 --clear-groups ` + shared + `/k3s9p "$@"`
	return m.Try(patience, append([]string{"sh", "-c", enter, cgroup}, args...)...)
}

// must runs k3s9p as the user in the first cgroup, from which nothing leads into others.
func (m userMachine) must(args ...string) string {
	m.t.Helper()
	output, err := m.as("/sys/fs/cgroup", args...)
	if err != nil {
		m.t.Fatalf("k3s9p %v: %v\n%s\n%s", args, err, output, m.userLogs())
	}
	return output
}

func (m userMachine) userLogs() string {
	output, _ := m.Try(time.Minute, "sh", "-c", "for l in "+userData+"/log/*.log; do echo \"== $l\"; tail -n 8 $l; done")
	return output
}

func (m userMachine) upAsUser(cgroup string) {
	m.t.Helper()
	output, err := m.as(cgroup, "up", "--detach", "--wait=10m", "--images="+shared+"/images")
	if err != nil {
		m.t.Fatalf("k3s9p up: %v\n%s\n%s", err, output, m.userLogs())
	}
	m.t.Log(output)
}

// snapshot is what a node could leave: files, cgroups, mounts, devices, rules, processes.
func (m userMachine) snapshot() string {
	m.t.Helper()
	return m.Must("sh", "-c", `ls -lAR --time-style=+ `+home+`
for d in `+delegated+` `+delegated+`/*/; do echo $d $(cat $d/cgroup.procs $d/cgroup.subtree_control); done
cat /proc/mounts /proc/sys/net/ipv4/ip_forward
ip -o link | cut -d: -f2
ps -eo user,args --no-headers | grep -v '\[\|ps -eo\|sh -c\|grep\|init$'`)
}

func (m userMachine) unchanged(before string) {
	m.t.Helper()
	after := ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
		if after = m.snapshot(); after == before {
			return
		}
	}
	m.t.Errorf("something is left or missing; before:\n%s\nafter:\n%s", before, after)
}

// TestUser is a user that is not root, on Linux: a node needs a cgroup that is theirs.
func TestUser(t *testing.T) {
	m := startForUser(t)
	before := m.snapshot()
	refused := func(t *testing.T, says ...string) {
		for _, args := range [][]string{{"check"}, {"up", "--dry-run"}, {"up", "--detach"}} {
			output, err := m.as(delegated, args...)
			if (err == nil) != (args[0] == "check") {
				t.Errorf("k3s9p %v: %v\n%s", args, err, output)
			}
			for _, text := range says {
				if !strings.Contains(output, text) {
					t.Errorf("k3s9p %v does not say %q\n%s", args, text, output)
				}
			}
		}
		m.unchanged(before)
	}
	t.Run("without a cgroup the reason is named, with what delegates one", func(t *testing.T) {
		refused(t, "write to "+delegated+": permission denied", "hint: systemd-run --user --scope --property=Delegate=yes k3s9p up")
	})
	m.delegate()
	t.Run("a controller that was not delegated is named", func(t *testing.T) {
		parent := filepath.Dir(delegated) + "/cgroup.subtree_control"
		m.Must("sh", "-c", "echo -memory > "+parent)
		refused(t, delegated+" is delegated without the controllers memory", "Delegate=cpu cpuset io memory pids")
		m.Must("sh", "-c", "echo +memory > "+parent)
	})
	t.Run("without newuidmap it is one id", func(t *testing.T) {
		m.Must("mv", "/usr/bin/newuidmap", "/usr/bin/no-newuidmap")
		for _, args := range [][]string{{"check"}, {"up", "--dry-run"}} {
			output, err := m.as(delegated, args...)
			for _, says := range []string{"users: 1, groups: 1", `"newuidmap": executable file not found`, "images whose files belong to others than root do not unpack"} {
				if err != nil || !strings.Contains(output, says) {
					t.Errorf("k3s9p %v: %v, and it does not say %q\n%s", args, err, says, output)
				}
			}
		}
		m.Must("mv", "/usr/bin/no-newuidmap", "/usr/bin/newuidmap")
		m.unchanged(before)
	})
	m.upAsUser(delegated)
	m.must("kubectl", "apply", "--filename="+shared+"/pod.yaml")
	m.must("kubectl", "wait", "--for=condition=Ready", "pod/several", "--timeout=5m")
	ask := func(path string) string {
		return m.must("kubectl", "get", "--raw", "/api/v1/namespaces/default/pods/several:8080/proxy"+path)
	}
	t.Run("users and groups are those that newuidmap grants", func(t *testing.T) {
		if output := m.Must("ps", "-eo", "user,group,args"); !strings.Contains(output, "101001   101002   /web") {
			t.Errorf("no process is user 1002 and group 1003 of the node:\n%s", output)
		}
		ask("/write?path=/shared/file&text=written") // by its group
		if answer := ask("/file?path=/shared/file"); answer != "written" {
			t.Errorf("what was written to the volume of a group reads %q", answer)
		}
	})
	t.Run("pods reach the outside by TCP and UDP", func(t *testing.T) {
		for _, path := range []string{"/get?url=http://" + server + "/", "/datagram?to=" + server + "&text=who"} {
			if answer := ask(path); strings.TrimSpace(answer) != "machine" {
				t.Errorf("%s gives %q", path, answer)
			}
		}
	})
	t.Run("limits are enforced", func(t *testing.T) {
		if output := m.Must("sh", "-c", "cat "+delegated+"/k3s9p/kubepods/pod*/memory.max "+delegated+"/k3s9p/kubepods/pod*/cpu.max"); output != "67108864\n50000 100000\n" {
			t.Errorf("the cgroup of the pod has %q", output)
		}
		_, _ = m.as("/sys/fs/cgroup", "kubectl", "get", "--raw", "/api/v1/namespaces/default/pods/several:8080/proxy/hold?mib=100")
		m.must("kubectl", "wait", "--for=jsonpath={.status.containerStatuses[0].state.terminated.reason}=OOMKilled", "pod/several", "--timeout=2m")
	})
	t.Run("up takes back what a node has left that was killed", func(t *testing.T) {
		m.Must("sh", "-c", `for p in /proc/[0-9]*; do case $(tr '\0' ' ' < $p/cmdline) in k3s9p-outside*|k3s9p-supervisor*) kill -9 ${p#/proc/};; esac; done; true`)
		m.upAsUser(delegated + "/k3s9p-own") // where it has moved the shell to that it was started from
		if output := m.Must("sh", "-c", "cd "+delegated+"; ls -d */ */*/"); strings.Contains(output, "k3s9p-own/k3s9p") {
			t.Errorf("the cgroup has:\n%s", output)
		}
		m.must("kubectl", "delete", "pod", "several", "--ignore-not-found")
		m.must("kubectl", "apply", "--filename="+shared+"/pod.yaml")
		m.must("kubectl", "wait", "--for=condition=Ready", "pod/several", "--timeout=5m")
	})
	t.Run("down --purge leaves nothing", func(t *testing.T) {
		m.must("down", "--purge")
		m.unchanged(before)
	})
}
