package journal

import (
	"os"
	"strings"
	"testing"
)

type change struct{ Value string }

func TestTheFirstRecordOfABootStays(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	for _, value := range []string{"before", "after the first fix"} {
		if err := j.Record("sysctl", change{value}); err != nil {
			t.Fatal(err)
		}
	}
	var got change
	recorded, sameBoot, err := j.Read("sysctl", &got)
	if !recorded || !sameBoot || err != nil || got.Value != "before" {
		t.Errorf("recorded %v, same boot %v, %v: %q", recorded, sameBoot, err, got.Value)
	}
	for range 2 {
		if err := j.Forget("sysctl"); err != nil {
			t.Fatal(err)
		}
	}
	if recorded, _, err := j.Read("sysctl", &got); recorded || err != nil {
		t.Errorf("forgotten, and still recorded: %v", err)
	}
}

func TestARecordOfAnEarlierBootSaysSoAndIsReplaced(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	if err := os.WriteFile(j.file("sysctl"), []byte(`{"boot":"earlier","change":{"Value":"old"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	var got change
	if recorded, sameBoot, err := j.Read("sysctl", &got); !recorded || sameBoot || err != nil {
		t.Fatalf("recorded %v, same boot %v, %v", recorded, sameBoot, err)
	}
	if err := j.Record("sysctl", change{"new"}); err != nil {
		t.Fatal(err)
	}
	if _, sameBoot, err := j.Read("sysctl", &got); !sameBoot || err != nil || got.Value != "new" {
		t.Errorf("same boot %v, %v: %q", sameBoot, err, got.Value)
	}
}

func TestADamagedRecordIsKeptAndNamed(t *testing.T) {
	j := Journal{Dir: t.TempDir()}
	if err := os.WriteFile(j.file("sysctl"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := j.Read("sysctl", new(change)); err == nil || !strings.Contains(err.Error(), j.file("sysctl")) {
		t.Errorf("read: %v", err)
	}
	if err := j.Record("sysctl", change{}); err == nil {
		t.Error("a damaged record was replaced")
	}
}
