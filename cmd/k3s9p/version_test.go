package main

import (
	"strings"
	"testing"

	"k3s9p/internal/record"
)

// What is not the pinned build says so, set by set, and what it lacks.
func TestVersionSaysWhatIsNotPinned(t *testing.T) {
	var out strings.Builder
	describe(&out, record.Build{
		Distribution: "k3s", Version: "v1.36.2+k3s1.k3s9p.0123456789ab", Toolchain: record.Toolchain{Go: "go1.26.8", Platform: "linux/amd64"},
		Sets: []record.Set{
			{Name: "k3s-server", Version: "v1.36.2+k3s1.k3s9p.0123456789ab",
				Patches:    []record.Patch{{Digest: "abcdefabcdefabcdef", Module: "example.com/m", Description: "mend it"}},
				Unverified: []string{"github.com/k3s-io/k3s"}, Replaced: []string{"k8s.io/klog/v2 => k8s.io/klog/v2 v2.140.0"}},
			{Name: "k3s-runc", Version: "v1.4.2"},
		},
		Lacks: []string{"the userland"},
	})
	want := `k3s v1.36.2+k3s1.k3s9p.0123456789ab (go1.26.8, linux/amd64)
  k3s-server   v1.36.2+k3s1.k3s9p.0123456789ab
    abcdefabcdef  example.com/m: mend it
    not the pinned source: github.com/k3s-io/k3s
    not the pinned module: k8s.io/klog/v2 => k8s.io/klog/v2 v2.140.0
  k3s-runc     v1.4.2
  lacks the userland
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
