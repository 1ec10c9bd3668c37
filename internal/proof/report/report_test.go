package report

import (
	"encoding/xml"
	"errors"
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
		{ID: "cause-stock", Kind: Cause, Title: "no patch", Seen: `failed: "x" <y>" pod=z`, Fix: "a & b", Result: Reproduced},
		{ID: "cause-all", Kind: Cause, Title: "all | patches", Result: Passed},
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
	if !strings.Contains(text, "no patch") || strings.Index(text, "no patch") > strings.Index(text, "all | patches") {
		t.Errorf("the causes are not from top to bottom:\n%s", text)
	}
}

func TestDocument(t *testing.T) {
	file := filepath.Join(t.TempDir(), "experiment.md")
	if err := os.WriteFile(file, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Compare(file, columns); err == nil || !strings.Contains(err.Error(), "mage docs") {
		t.Errorf("another table gives %v", err)
	}
	if err := Update(file, columns); err != nil {
		t.Fatal(err)
	}
	if err := Compare(file, columns); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(file)
	if want := "before\n" + begin + Table(columns) + end + "after\n"; err != nil || string(data) != want {
		t.Errorf("the document is %q, %v; want %q", data, err, want)
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Update(file, columns); err == nil {
		t.Error("a document without the markers was updated")
	}
}
