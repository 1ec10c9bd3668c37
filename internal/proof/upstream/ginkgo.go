package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k3s9p/internal/hint"
)

// ginkgo runs one package and counts its specs, from Ginkgo's own report.
func (r runner) ginkgo(ctx context.Context, s side, path, pkg string) (suite, error) {
	dir, err := r.Temporary("ginkgo")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "report.json")
	plain, err := r.goTest(ctx, s, path, pkg, "-args", "-ginkgo.json-report="+file)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return plain, nil // it did not compile, or did not get to the report
	}
	if err != nil {
		return nil, err
	}
	return readGinkgo(pkg, data)
}

func readGinkgo(pkg string, data []byte) (suite, error) {
	var reports []struct {
		SpecReports []struct {
			ContainerHierarchyTexts   []string
			LeafNodeText, State       string
			LeafNodeType              string
			SpecialSuiteFailureReason string
		}
	}
	if err := json.Unmarshal(data, &reports); err != nil {
		return nil, hint.Add(fmt.Errorf("read Ginkgo's report of %s: %w", pkg, err), "its format is that of ginkgo v2, types.Report")
	}
	outcome := map[string]string{"passed": "pass", "skipped": "skip", "pending": "skip"}
	specs := make(suite)
	for _, report := range reports {
		for _, spec := range report.SpecReports {
			name := pkg + " " + strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " ")
			if spec.LeafNodeType != "It" {
				name += " (" + spec.LeafNodeType + ")"
			}
			for n := 2; specs[name] != ""; n++ {
				name = fmt.Sprintf("%s #%d", strings.TrimSuffix(name, fmt.Sprintf(" #%d", n-1)), n)
			}
			if specs[name] = outcome[spec.State]; specs[name] == "" {
				specs[name] = "fail"
			}
		}
	}
	return specs, nil
}
