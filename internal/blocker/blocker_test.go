package blocker

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k3s9p/internal/config"
)

// The texts are lines of logs of a kubelet and of containerd in gVisor.
func TestSymptomIn(t *testing.T) {
	for _, c := range []struct {
		id, log string
		found   bool
	}{
		{"cgroup-files", `E1124 kubelet.go:1821] "Failed to start ContainerManager" err="failed to get rootfs info: unable to find data in memory cache"`, true},
		{"mount-propagation", `err="failed to generate spec: path \"/srv\" is mounted on \"/\" but it is not a shared mount"`, true},
		{"mount-propagation", `CreateContainerError: \"path \\\"/srv\\\" is mounted on \\\"/\\\" but it is not a shared mount\"`, true},
		{"bridge-port", `failed to setup hairpin mode for vetha0d2e3d5: operation not supported`, true},
		{"bridge-port", "failed to setup hairpin mode for vetha0d2e3d5: no such device\noperation not supported", false},
		{"kmsg", "", false},
	} {
		b, err := Find(c.id)
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Symptom.In(c.log); (got != "") != c.found {
			t.Errorf("symptom of %s in %q: %q", c.id, c.log, got)
		}
	}
}

// A blocker that can be found has a fix, or says that there is none.
func TestRemedies(t *testing.T) {
	var ids []string
	for _, b := range All() {
		if slices.Contains(ids, b.ID) {
			t.Errorf("two blockers are called %s", b.ID)
		}
		ids = append(ids, b.ID)
		if b.Title == "" || b.Symptom == "" || b.Source == "" || b.Action == "" || b.Check == nil {
			t.Errorf("blocker %s is not complete", b.ID)
		}
		changes := b.Remedy == Setting || b.Remedy == Machine
		if (b.Fix != nil) != changes || (b.Undo != nil) != (b.Remedy == Machine) {
			t.Errorf("the functions of %s do not fit its remedy, %s", b.ID, b.Remedy)
		}
	}
	if _, err := Find("unknown"); err == nil {
		t.Error("an unknown blocker was found")
	}
}

func TestKmsgIsLinkedAndUnlinked(t *testing.T) {
	dir := t.TempDir()
	kernelLog = filepath.Join(dir, "kmsg")
	t.Cleanup(func() { kernelLog = "/dev/kmsg" })
	settings := config.Default()
	h := &Host{Data: filepath.Join(dir, "data"), Settings: &settings}
	for range 2 { // a second fix changes nothing
		if err := kmsg.Fix(h); err != nil {
			t.Fatal(err)
		}
	}
	if target, err := os.Readlink(kernelLog); err != nil || target != os.DevNull {
		t.Fatalf("the link goes to %q, %v", target, err)
	}
	if finding := kmsg.check(t.Context(), h); finding.Answer != Fixed {
		t.Fatalf("fixed, and then %s: %s", finding.Answer, finding.Evidence)
	}
	for range 2 { // a second undo finds nothing
		if err := kmsg.Undo(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(kernelLog); !os.IsNotExist(err) {
		t.Errorf("the link is still there: %v", err)
	}
}

// What somebody else put there meanwhile stays.
func TestUndoLeavesWhatIsNotOurs(t *testing.T) {
	dir := t.TempDir()
	kernelLog = filepath.Join(dir, "kmsg")
	t.Cleanup(func() { kernelLog = "/dev/kmsg" })
	h := &Host{Data: filepath.Join(dir, "data"), Settings: new(config.Settings)}
	if err := kmsg.Fix(h); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(kernelLog); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernelLog, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Undo(h); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(kernelLog); err != nil || string(data) != "theirs" {
		t.Errorf("the file has %q, %v", data, err)
	}
}

func TestADamagedRecordIsKept(t *testing.T) {
	h := &Host{Data: t.TempDir(), Settings: new(config.Settings)}
	if err := h.journal().Record("kmsg", kmsgChange{Linked: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.Data, "fixes", "kmsg.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := kmsg.Undo(h); err == nil {
		t.Error("a damaged record was undone")
	}
	if _, err := os.Stat(filepath.Join(h.Data, "fixes", "kmsg.json")); err != nil {
		t.Errorf("the damaged record is gone: %v", err)
	}
}
