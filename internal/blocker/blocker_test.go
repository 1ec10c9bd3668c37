package blocker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k3s9p/internal/config"
	"k3s9p/internal/probe"
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
		if b.Title == "" || b.Symptom == "" || b.Source == "" || b.Check == nil {
			t.Errorf("blocker %s is not complete", b.ID)
		}
		decides := b.Remedy == Setting || b.Remedy == Machine
		if (b.Decide != nil) != decides || (b.Action == "") != decides || (b.Undo != nil) && b.Remedy != Machine {
			t.Errorf("blocker %s does not fit its remedy, %s", b.ID, b.Remedy)
		}
	}
	if _, err := Find("unknown"); err == nil {
		t.Error("an unknown blocker was found")
	}
}

// unlinked is a machine without a kernel log.
func unlinked(t *testing.T) *Host {
	t.Helper()
	dir := t.TempDir()
	kernelLog = filepath.Join(dir, "kmsg")
	t.Cleanup(func() { kernelLog = "/dev/kmsg" })
	return &Host{Data: filepath.Join(dir, "data"), Settings: config.Default()}
}

// planOf decides about one blocker only.
func planOf(t *testing.T, h *Host, b Blocker) Plan {
	t.Helper()
	p := Plan{Findings: []Finding{b.check(t.Context(), h)}, Settings: h.Settings}
	p.decide(t.Context(), h, b, &p.Findings[0])
	return p
}

func all(string) bool { return true }

func TestKmsgIsLinkedAndUnlinked(t *testing.T) {
	h := unlinked(t)
	p := planOf(t, h, kmsg)
	if len(p.Changes) != 1 || p.Findings[0].Answer != Found || p.Findings[0].Action != p.Changes[0].What {
		t.Fatalf("the plan is %+v", p)
	}
	for range 2 { // a second time changes nothing
		if err := p.Apply(h.journal(), all); err != nil {
			t.Fatal(err)
		}
	}
	if target, err := os.Readlink(kernelLog); err != nil || target != os.DevNull {
		t.Fatalf("the link goes to %q, %v", target, err)
	}
	// A plan that is made after a crash is the one that is followed when the crash is
	// cleaned up after.
	again := planOf(t, h, kmsg)
	if again.Findings[0].Answer != Fixed || len(again.Changes) != 1 || again.Changes[0].What != p.Changes[0].What {
		t.Errorf("fixed, and then the plan is %+v", again)
	}
	for range 2 { // a second undo finds nothing
		if err := Undo(h.journal()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(kernelLog); !os.IsNotExist(err) {
		t.Errorf("the link is still there: %v", err)
	}
}

// What somebody else put there meanwhile stays.
func TestUndoLeavesWhatIsNotOurs(t *testing.T) {
	h := unlinked(t)
	p := planOf(t, h, kmsg)
	if err := p.Apply(h.journal(), all); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(kernelLog); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernelLog, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Undo(h.journal()); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(kernelLog); err != nil || string(data) != "theirs" {
		t.Errorf("the file has %q, %v", data, err)
	}
}

// A crash between the record and the change leaves nothing to take back.
func TestUndoOfAChangeThatWasNotMade(t *testing.T) {
	h := unlinked(t)
	if err := h.journal().Record("kmsg", kmsgLink{Linked: true}); err != nil {
		t.Fatal(err)
	}
	if err := Undo(h.journal()); err != nil {
		t.Fatal(err)
	}
	if !h.journal().Empty() {
		t.Error("the record is still there")
	}
}

func TestADamagedRecordIsKept(t *testing.T) {
	h := &Host{Data: t.TempDir()}
	record := filepath.Join(h.Data, "fixes", "kmsg.json")
	if err := errors.Join(os.Mkdir(filepath.Dir(record), 0o755), os.WriteFile(record, []byte("{"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := Undo(h.journal()); err == nil {
		t.Error("a damaged record was undone")
	}
	if _, err := os.Stat(record); err != nil {
		t.Errorf("the damaged record is gone: %v", err)
	}
}

// What could not be told decides nothing, unless the blocker says what is right then.
func TestUnclear(t *testing.T) {
	b := Blocker{
		ID: "b", Title: "a blocker", Remedy: Setting,
		Check:  func(context.Context, *Host) (Answer, string) { return unclear(probe.ErrUnclear) },
		Decide: func(_ context.Context, d *decision) { d.choose("subject", "value") },
	}
	if p := planOf(t, &Host{}, b); len(p.Choices) != 0 || p.Findings[0].Action != "" {
		t.Errorf("the plan is %+v", p)
	}
	b.Default = "it is right everywhere"
	p := planOf(t, &Host{}, b)
	if want := (Choice{"subject", "value", "could not tell; it is right everywhere"}); len(p.Choices) != 1 || p.Choices[0] != want {
		t.Errorf("the plan is %+v", p)
	}
}

// A probe that panics or hangs is no finding, and keeps nobody from an answer.
func TestABrokenProbe(t *testing.T) {
	for name, check := range map[string]func(context.Context, *Host) (Answer, string){
		"a panic":   func(context.Context, *Host) (Answer, string) { panic("the kernel sent something unexpected") },
		"no answer": func(context.Context, *Host) (Answer, string) { select {} },
	} {
		ctx, cancel := t.Context(), func() {}
		if name == "no answer" {
			ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
		}
		f := Blocker{Check: check}.check(ctx, &Host{})
		cancel()
		if f.Answer != Unclear || !strings.Contains(f.Evidence, name) {
			t.Errorf("%s gives %+v", name, f)
		}
	}
}

// One change that fails is named, with its reason.
func TestApplySaysWhatFailed(t *testing.T) {
	h := unlinked(t)
	p := planOf(t, h, kmsg)
	if err := os.WriteFile(kernelLog, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(h.journal(), all); err == nil || !strings.Contains(err.Error(), p.Changes[0].What) {
		t.Errorf("apply: %v", err)
	}
}

// A machine with less memory than the node needs has no node.
func TestLittleMemory(t *testing.T) {
	for memory, want := range map[int64]Answer{0: Fine, 1 << 60: Found} {
		if answer, evidence := littleMemory.Check(t.Context(), &Host{Memory: memory}); answer != want {
			t.Errorf("%s where a node needs %d bytes: %s", answer, memory, evidence)
		}
	}
}
