package builder

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadGinkgo(t *testing.T) {
	specs, err := readGinkgo("p", []byte(`[{"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "State": "passed"},
		{"ContainerHierarchyTexts": ["bridge", "with a VLAN"], "LeafNodeType": "It", "LeafNodeText": "adds", "State": "passed"},
		{"ContainerHierarchyTexts": ["bridge", "with a VLAN"], "LeafNodeType": "It", "LeafNodeText": "adds", "State": "panicked"},
		{"ContainerHierarchyTexts": ["bridge"], "LeafNodeType": "It", "LeafNodeText": "checks", "State": "skipped"}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	want := suite{"p  (BeforeSuite)": "pass", "p bridge with a VLAN adds": "pass", "p bridge with a VLAN adds #2": "fail", "p bridge checks": "skip"}
	if diff := cmp.Diff(want, specs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A test that fails with the patches is a regression unless it fails without
// them too; so is one that is gone.
func TestRegressions(t *testing.T) {
	stock := suite{"p A": "pass", "p B": "fail", "p C": "pass", "p D": "skip", "p E": "pass"}
	patched := suite{"p A": "fail", "p B": "fail", "p C": "pass", "p D": "fail", "p New": "fail"}
	want := []string{"p A", "p D", "p E (did not run)", "p New"}
	if diff := cmp.Diff(want, patched.failuresNotIn(stock)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
