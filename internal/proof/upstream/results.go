package upstream

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k3s9p/internal/hint"
)

// suite is what one run of a list of packages gave: the outcome (pass, fail,
// skip) by test, where a test is "package name".
type suite map[string]string

// Suite is a line of the report of test:upstream.
type Suite struct {
	Set      string   `json:"set"`
	Packages []string `json:"packages"`
	Stock    Counts   `json:"stock"`
	Patched  Counts   `json:"patched"`
	// StockFailures fail here without any patch; the patched tree may fail them too.
	StockFailures []string `json:"stockFailures,omitempty"`
	// Regressions fail with the patches and not without them.
	Regressions []string `json:"regressions,omitempty"`
	// Flaky failed once with the patches and passed when they were run again.
	Flaky   []string `json:"flaky,omitempty"`
	Skipped string   `json:"skipped,omitempty"` // why the suite was not run
}

// Counts are numbers of tests, subtests included.
type Counts struct {
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
}

func (c Counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.Passed, c.Failed, c.Skipped)
}

func (c Counts) plus(other Counts) Counts {
	return Counts{c.Passed + other.Passed, c.Failed + other.Failed, c.Skipped + other.Skipped}
}

// settle takes a failure that did not happen again for a flake.
func (s *Suite) settle(after, again suite) {
	var regressions []string
	for _, test := range s.Regressions {
		if again[test] == "pass" {
			s.Flaky = append(s.Flaky, test)
			after[test] = "pass"
		} else {
			regressions = append(regressions, test)
		}
	}
	s.Regressions = regressions
}

// dropPackages removes the failures of packages that a failure of their tests
// explains. What stays did not compile or crashed.
func (s suite) dropPackages() {
	for _, test := range s.failures() {
		if pkg, _, found := strings.Cut(test, " "); found {
			delete(s, pkg)
		}
	}
}

// sound refuses results from which nothing can be concluded: a package that does
// not compile or crashes, on either side, and a run in which no test passed.
func (s suite) sound() error {
	for _, test := range s.failures() {
		if !strings.Contains(test, " ") {
			return hint.Add(fmt.Errorf("the tests of %s did not run to their end", test), "what they printed is in dist/reports")
		}
	}
	if s.counts().Passed == 0 {
		return errors.New("no test passed")
	}
	return nil
}

func (s suite) counts() Counts {
	var c Counts
	for _, outcome := range s {
		switch outcome {
		case "pass":
			c.Passed++
		case "skip":
			c.Skipped++
		default:
			c.Failed++
		}
	}
	return c
}

func (s suite) failures() []string {
	var failed []string
	for test, outcome := range s {
		if outcome == "fail" {
			failed = append(failed, test)
		}
	}
	slices.Sort(failed)
	return failed
}

// failuresNotIn lists the tests that fail here and do not fail there, and the
// ones that pass there and are not here.
func (s suite) failuresNotIn(stock suite) []string {
	var regressions []string
	for _, test := range s.failures() {
		if stock[test] != "fail" {
			regressions = append(regressions, test)
		}
	}
	for test, outcome := range stock {
		if _, ran := s[test]; outcome == "pass" && !ran {
			regressions = append(regressions, test+" (did not run)")
		}
	}
	slices.Sort(regressions)
	return regressions
}

func packagesOf(tests []string) []string {
	var packages []string
	for _, test := range tests {
		pkg, _, _ := strings.Cut(test, " ")
		packages = append(packages, pkg)
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}
