package upstream

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

// Packages that do not compile fail the same with and without patches: that must
// not count as no regression.
func TestUnsoundResults(t *testing.T) {
	for _, test := range []struct {
		name    string
		results suite
		sound   bool
	}{
		{"tests that fail", suite{"p A": "pass", "p B": "fail"}, true},
		{"a package that does not compile", suite{"p A": "pass", "q": "fail"}, false},
		{"nothing that passes", suite{"p A": "skip"}, false},
		{"nothing", suite{}, false},
	} {
		if err := test.results.sound(); (err == nil) != test.sound {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
