package report

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var columns = []Column{
	{GVisor: "today", Steps: []Step{
		{ID: "vxlan", Kind: Extra, Title: "no VXLAN devices", Result: Reproduced},
		{ID: "cause-stock", Kind: Cause, Title: "no patch", Expected: `failed: "x" <y>`, Fix: "a & b", Result: Reproduced},
		{ID: "cause-all", Kind: Cause, Title: "all | patches", Expected: "a pod answers", Result: Passed},
		{ID: "workaround-a", Kind: Workaround, Title: "a tmpfs", Result: FailsAsExpected},
		{ID: "workaround-a-cgroups", Kind: Workaround, Title: "the same", Result: Helps},
		{ID: "workaround-b", Kind: Workaround, Title: "a bind mount", Result: FailsAsExpected},
		{ID: "workaround-b-cgroups", Kind: Workaround, Title: "the same", Result: FailsAsExpected},
		{ID: "iteration-2-kmsg", Kind: Iteration, Title: "no /dev/kmsg", Result: Reproduced},
		{ID: "iteration-1-baseline", Kind: Iteration, Title: "kernel parameters", Result: NotReproduced},
	}},
	{GVisor: "202509", Steps: []Step{
		{ID: "iteration-1-baseline", Kind: Iteration, Title: "kernel parameters", Result: NotReproduced},
		{ID: "link-kind", Kind: Extra, Title: "no kinds", Result: Reproduced},
	}},
}

func TestTable(t *testing.T) {
	dir := t.TempDir()
	for _, c := range columns {
		if err := c.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	read, err := Read(dir, []string{"today", "202601", "202509"})
	if err != nil {
		t.Fatal(err)
	}
	want := `| step | what bites, or was tried | gVisor today | September 2025 |
| --- | --- | --- | --- |
| iteration-1-baseline | kernel parameters | not-reproduced | not-reproduced |
| iteration-2-kmsg | no /dev/kmsg | reproduced | – |
| workaround-a | a tmpfs | fails-as-expected | – |
| workaround-a-cgroups | the same | helps | – |
| workaround-b | a bind mount | fails-as-expected | – |
| workaround-b-cgroups | the same | fails-as-expected | – |
| cause-stock | no patch | reproduced | – |
| cause-all | all \| patches | passed | – |
| vxlan | no VXLAN devices | reproduced | – |
| link-kind | no kinds | – | reproduced |
`
	if diff := cmp.Diff(want, Table(read)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range 2 {
		if err := Clear(dir, "today"); err != nil {
			t.Fatal(err)
		}
	}
	if read, err := Read(dir, []string{"today", "202509"}); err != nil || len(read) != 1 {
		t.Errorf("after Clear there are %d columns, %v", len(read), err)
	}
}

// What programs said has all sorts of characters in it.
func TestPictureIsXML(t *testing.T) {
	text := picture(columns[0])
	decoder := xml.NewDecoder(strings.NewReader(text))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
	last := -1
	for _, title := range []string{"no /dev/kmsg", "no patch", "all | patches"} {
		at := strings.Index(text, title)
		if at <= last {
			t.Errorf("%q is not there, or not below the one before:\n%s", title, text)
		}
		last = at
	}
}

func TestDocuments(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "docs"), 0o755); err != nil {
		t.Fatal(err)
	}
	readme, document := filepath.Join(root, "README.md"), filepath.Join(root, "docs", "experiment.md")
	place := func(name, text string) string { return fmt.Sprintf(begin, name) + text + fmt.Sprintf(end, name) }
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(readme, "before\n"+place("causes", "old\n")+"between\n"+place("workarounds", "")+"after\n")
	write(document, place("experiment", "old\n"))
	if err := Compare(root, columns); err == nil || !strings.Contains(err.Error(), "mage docs") {
		t.Errorf("other documents give %v", err)
	}
	if err := Update(root, columns); err != nil {
		t.Fatal(err)
	}
	if err := Compare(root, columns); err != nil {
		t.Error(err)
	}
	want := "before\n" + place("causes", "| patches | what the kubelet says |\n| --- | --- |\n| no patch | `failed: \"x\" <y>` |\n| all \\| patches | it is healthy: a pod answers |\n") +
		"between\n" + place("workarounds", "Of the experiment's 2 workarounds 1 would have helped against 9p:\na tmpfs.\nIt could not see that, because the cgroups ended its kubelet first.\n") + "after\n"
	if data, err := os.ReadFile(readme); err != nil || string(data) != want {
		t.Errorf("README.md, %v (-want +got):\n%s", err, cmp.Diff(want, string(data)))
	}
	write(filepath.Join(root, "docs", "experiment.svg"), "another picture")
	if err := Compare(root, columns); err == nil || !strings.Contains(err.Error(), "experiment.svg") {
		t.Errorf("another picture gives %v", err)
	}
	write(document, "nothing")
	if err := Update(root, columns); err == nil {
		t.Error("a document without the markers was updated")
	}
}
