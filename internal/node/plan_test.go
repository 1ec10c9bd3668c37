package node

import (
	"os"
	"path/filepath"
	"testing"

	"k3s9p/internal/blocker"
	"k3s9p/internal/probe"
)

func TestMain(m *testing.M) {
	probe.Init()
	os.Exit(m.Run())
}

// In namespaces of its own a node gets the plan for there.
func TestPlanInside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a node that belongs to root is planned")
	}
	plan, err := planInside(t.Context(), Options{DataDir: filepath.Join(t.TempDir(), "data")})
	if err != nil {
		t.Fatal(err)
	}
	if !plan.Settings.UserNamespace {
		t.Error("the programs do not know that they are in a user namespace")
	}
	for _, f := range plan.Findings {
		t.Logf("%s: %s: %s", f.ID, f.Answer, f.Evidence)
		if f.ID == "pod-network" && f.Answer != blocker.Fine {
			t.Errorf("devices are made there, and they are not: %s", f.Evidence)
		}
	}
	for _, c := range plan.Choices {
		t.Logf("%s: %s", c.Subject, c.Value)
	}
	for _, c := range plan.Changes {
		t.Logf("%s (%s)", c.What, c.Reason)
	}
}
