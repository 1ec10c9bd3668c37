package patch

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const good = `Description: fs: report inodes as unknown
 Filesystems that allocate inodes on demand
 answer 0: see section 2.
 .
 It is not a full table.
Origin: vendor, k3s9p
Bug: https://example.com/1
Forwarded: no
Last-Update: 2026-11-23`

func TestHeader(t *testing.T) {
	header, err := parseHeader(good)
	if err != nil {
		t.Fatal(err)
	}
	if header.Description != "fs: report inodes as unknown" {
		t.Errorf("the description is %q", header.Description)
	}
	want := "Filesystems that allocate inodes on demand\nanswer 0: see section 2.\n\nIt is not a full table."
	if diff := cmp.Diff(want, header.Long); diff != "" {
		t.Errorf("the long description (-want +got):\n%s", diff)
	}
	if header.Bug != "https://example.com/1" || header.Forwarded != "no" || header.LastUpdate.Format("2006-01-02") != "2026-11-23" {
		t.Errorf("the other fields: %+v", header)
	}
}

func TestBadHeaders(t *testing.T) {
	for text, want := range map[string]string{
		"": "it has no DEP-3 header",
		strings.Replace(good, "Origin: vendor, k3s9p\n", "", 1): "no Origin field",
		strings.Replace(good, "2026-11-23", "yesterday", 1):     `Last-Update is "yesterday", not a date`,
		"Subject without a colon\n" + good:                      "cannot be read",
	} {
		if _, err := parseHeader(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("header %.20q…: got %v, want an error with %q", text, err, want)
		}
	}
}

func TestFileNames(t *testing.T) {
	for description, want := range map[string]string{
		"fs/vfs: hold one goroutine":                               "0007-fs-vfs-hold-one-goroutine.patch",
		"kubelet/cm: skip kernel tunables that the kernel refuses": "0007-kubelet-cm-skip-kernel-tunables-that-the-kernel-refuses.patch",
		strings.Repeat("word ", 30):                                "0007-" + strings.TrimSuffix(strings.Repeat("word-", 12), "-") + ".patch",
	} {
		if got := slug(7, description); got != want || !patchName.MatchString(got) {
			t.Errorf("%q becomes %q, want %q", description, got, want)
		}
	}
}

// A patch may not write outside of its module.
func TestPatchStaysInItsModule(t *testing.T) {
	raw := good + separator + "diff --git a/../../etc/passwd b/../../etc/passwd\n--- a/../../etc/passwd\n+++ b/../../etc/passwd\n@@ -1,1 +1,1 @@\n-a\n+b\n"
	if _, err := parse([]byte(raw)); err == nil || !strings.Contains(err.Error(), "outside of the module") {
		t.Errorf("got %v", err)
	}
}
