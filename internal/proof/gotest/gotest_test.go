package gotest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Captured with go1.26 test -json of a package with a test that skips, and of one
// that does not compile; times are left out.
func TestRead(t *testing.T) {
	const text = `{"Action":"start","Package":"example.com/a"}
{"Action":"run","Package":"example.com/a","Test":"TestA"}
{"Action":"attr","Package":"example.com/a","Test":"TestA","Key":"result","Value":"reproduced"}
{"Action":"output","Package":"example.com/a","Test":"TestA","Output":"--- SKIP: TestA (0.25s)\n"}
{"Action":"skip","Package":"example.com/a","Test":"TestA","Elapsed":0.25}
a program's own words
{"ImportPath":"example.com/b","Action":"build-output","Output":"b.go:3: undefined: x\n"}
{"Action":"fail","Package":"example.com/b","Elapsed":0,"FailedBuild":"example.com/b"}
`
	var got []Event
	if err := Read(strings.NewReader(text), func(e Event) { got = append(got, e) }); err != nil {
		t.Fatal(err)
	}
	want := []Event{
		{Action: "start", Package: "example.com/a"},
		{Action: "run", Package: "example.com/a", Test: "TestA"},
		{Action: "attr", Package: "example.com/a", Test: "TestA", Key: "result", Value: "reproduced"},
		{Action: "output", Package: "example.com/a", Test: "TestA", Output: "--- SKIP: TestA (0.25s)\n"},
		{Action: "skip", Package: "example.com/a", Test: "TestA", Elapsed: 0.25},
		{Output: "a program's own words\n"},
		{Action: "build-output", ImportPath: "example.com/b", Output: "b.go:3: undefined: x\n"},
		{Action: "fail", Package: "example.com/b", FailedBuild: "example.com/b"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
