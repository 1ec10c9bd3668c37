package undo

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// records are what is to be taken back, and kept is a copy of them.
const (
	records = cluster.Data + "/fixes"
	kept    = cluster.Data + "/kept" // where the comparison does not look
)

// What is recorded is taken back once; a record of what is not there, because down has
// been here before or because the node was killed before it made the change, harms
// nothing.
func TestRecords(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	before := c.Snapshot()
	c.Up()
	names := strings.Fields(c.Must("ls", records))
	for _, want := range []string{"bridge.json", "cgroups.json", "directories.json", "ip-forward.json", "kmsg.json", "nat.json"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among the records %v", want, names)
		}
	}
	c.Must("cp", "-r", records, kept)
	c.Down()
	c.Unchanged(before)
	restore := func(name string) {
		c.Must("mkdir", "-p", records)
		c.Must("cp", kept+"/"+name, records+"/"+name)
	}
	for _, name := range names {
		t.Run("only "+name, func(t *testing.T) {
			restore(name)
			undone(t, c, before)
		})
	}
	t.Run("all", func(t *testing.T) {
		for _, name := range names {
			restore(name)
		}
		undone(t, c, before)
	})
	// What a kernel forgets is not taken back after it has started anew: what is there by
	// now is somebody else's.
	t.Run("of another boot", func(t *testing.T) {
		for _, name := range names {
			restore(name)
		}
		c.Must("sh", "-c", `sed -i 's/"boot":"[^"]*"/"boot":"another"/' `+records+"/*.json")
		for _, name := range names {
			if text := c.Read(records + "/" + name); !strings.Contains(text, `"boot":"another"`) {
				t.Fatalf("%s has %s", name, text)
			}
		}
		c.Must("ip", "link", "add", "cni0", "type", "bridge")
		c.Down()
		c.Must("ip", "link", "delete", "cni0")
		c.Unchanged(before)
		if left := strings.TrimSpace(c.Must("ls", records)); left != "" {
			t.Errorf("after down there are the records %s", left)
		}
	})
	t.Run("then up", func(t *testing.T) {
		for _, name := range names {
			restore(name)
		}
		c.Up()
		undone(t, c, before)
	})
}

// undone brings the node down: the machine is as it was, and nothing is recorded.
func undone(t *testing.T, c *cluster.Cluster, before string) {
	t.Helper()
	c.Down()
	c.Unchanged(before)
	if output, err := c.Try(time.Minute, "ls", records); err != nil || strings.TrimSpace(output) != "" {
		t.Errorf("after down there are the records %q, %v", output, err)
	}
}

// kill ends what was typed and the supervisor.
const kill = `pkill -KILL -f "^(` + cluster.Program + `|k3s9p-supervisor)"; true`

// A command is one that is killed.
type command struct {
	args  []string
	takes time.Duration // at most, if it is left alone
}

// TestKilled kills check, up and down at random moments, in turn: the next down takes
// all of it back. A command that ended before it was killed is run again.
func TestKilled(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	before := c.Snapshot()
	commands := []*command{{args: []string{"check"}}, {args: []string{"up", "--detach"}}, {args: []string{"down"}}}
	for _, command := range commands {
		begun := time.Now()
		if output, err := c.K3s9p(command.args...); err != nil {
			t.Fatalf("k3s9p %v: %v\n%s", command.args, err, output)
		}
		command.takes = time.Since(begun)
	}
	for i := range gvisor.Kills() {
		command := commands[i%len(commands)]
		for tries := 1; ; tries++ {
			killed := command.killed(t, c, i)
			undone(t, c, before)
			if t.Failed() || tries == 10 && !killed {
				t.Fatalf("%d: k3s9p %v: try %d of 10, killed: %v", i+1, command.args, tries, killed)
			}
			if killed {
				break
			}
		}
	}
}

// killed runs a command, and reports whether it was killed, as opposed to having ended.
func (command *command) killed(t *testing.T, c *cluster.Cluster, i int) bool {
	if command.args[0] == "down" {
		c.Up()
	}
	moment := rand.N(command.takes)
	p := c.Background(append([]string{cluster.Program}, command.args...)...)
	time.Sleep(moment)
	if p.Ended() {
		command.takes = moment
	}
	c.Must("sh", "-c", kill)
	c.Await("the end of "+command.args[0], time.Minute, p.Ended)
	var exit *exec.ExitError
	killed := errors.As(p.Err(), &exit) && exit.ExitCode() == 128+int(unix.SIGKILL)
	if !killed && p.Err() != nil {
		t.Fatalf("k3s9p %v, which was not killed: %v\n%s", command.args, p.Err(), p.Output())
	}
	t.Logf("%d: %s after %.2f s: killed: %v", i+1, command.args[0], moment.Seconds(), killed)
	return killed
}
