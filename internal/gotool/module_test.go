package gotool

import (
	"strings"
	"testing"
)

// What the go command printed, captured with go1.26.8 (the host of the proxy is
// replaced), and what is made of it.
func TestModuleError(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"a module that the proxy refuses",
			"go: github.com/k3s-io/k3s@v1.36.3-0.20260720191027-4ca29faac89e: reading https://proxy.example/github.com/k3s-io/k3s/@v/v1.36.3-0.20260720191027-4ca29faac89e.mod: 403 Forbidden\n\tserver response: This module version is not available.",
			[]string{"module github.com/k3s-io/k3s v1.36.3-0.20260720191027-4ca29faac89e, pinned by build/toy, is refused by the module proxy: 403 Forbidden", "hint: set GOPROXY"}},
		{"a proxy that cannot be reached",
			`go: example.com/lib@v1.0.0: Get "http://127.0.0.1:1/example.com/lib/@v/v1.0.0.mod": dial tcp 127.0.0.1:1: connect: connection refused`,
			[]string{"module example.com/lib v1.0.0, pinned by build/toy, cannot be fetched: dial tcp 127.0.0.1:1: connect: connection refused"}},
		{"a fork that the proxy refuses",
			"go: github.com/containernetworking/plugins@v1.9.1 (replaced by github.com/rancher/plugins@v1.9.1-k3s1): reading https://proxy.example/github.com/rancher/plugins/@v/v1.9.1-k3s1.mod: 403 Forbidden\n\tserver response: This module version is not available.",
			[]string{"module github.com/rancher/plugins v1.9.1-k3s1, pinned by build/toy, is refused by the module proxy: 403 Forbidden (https://proxy.example/github.com/rancher/plugins/@v/v1.9.1-k3s1.mod)"}},
		{"no proxy at all", "go: example.com/lib@v1.0.0: module lookup disabled by GOPROXY=off",
			[]string{"module example.com/lib v1.0.0, pinned by build/toy, is not in the module cache, and GOPROXY=off", "hint: set GOPROXY"}},
		{"other bytes than the pinned ones",
			"verifying example.com/lib@v1.0.0: checksum mismatch\n\tdownloaded: h1:AAA=\n\tgo.sum:     h1:BBB=\n\nSECURITY ERROR\nThis download does NOT match an earlier download recorded in go.sum.",
			[]string{"module example.com/lib v1.0.0: checksum mismatch", "has h1:AAA=, build/toy/go.sum says h1:BBB="}},
		{"anything else", "go: something new\nand more", []string{"fetch the modules of build/toy: go: something new\n  and more"}},
	} {
		got := ModuleError("build/toy", "", test.text).Error()
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: got %q, want %q in it", test.name, got, want)
			}
		}
	}
}
