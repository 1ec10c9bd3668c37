package undo

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

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

// TestKilled kills check, up and down at random moments, in turn: the next down takes
// all of it back.
func TestKilled(t *testing.T) {
	c := cluster.Start(t, gvisor.Options{})
	before := c.Snapshot()
	up := c.Up()
	begun := time.Now()
	c.Down()
	down := time.Since(begun)
	moments := 0
	for i := range gvisor.Kills() {
		command, within := []string{"check"}, 2*time.Second
		switch i % 3 {
		case 1:
			command, within = []string{"up", "--detach"}, up
		case 2:
			up = min(up, c.Up()) // the machine may have been busier before
			command, within = []string{"down"}, down
		}
		moment := rand.N(within)
		name := fmt.Sprintf("%d: %s after %.2f s", i+1, command[0], moment.Seconds())
		p := c.Background(append([]string{cluster.Program}, command...)...)
		time.Sleep(moment)
		if !p.Ended() {
			moments++
		}
		c.Must("sh", "-c", kill)
		c.Await("the end of "+command[0], time.Minute, p.Ended)
		c.Down()
		c.Unchanged(before)
		if t.Failed() {
			t.Fatal(name)
		}
		t.Log(name)
	}
	if moments < gvisor.Kills()/2 {
		t.Errorf("%d of %d commands had not ended when they were killed", moments, gvisor.Kills())
	}
}
