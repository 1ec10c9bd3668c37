package manifest

import (
	"errors"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // objects
		line       int      // of an error
	}{
		{name: "nothing", text: "# later\n---\n"},
		{name: "two", text: "# a comment\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n--- # next\n\napiVersion: v1\nkind: Pod\nmetadata: {name: b, namespace: a}\n",
			want: []string{"Namespace a", "Pod a/b"}},
		{name: "JSON, a list", text: `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}]}`,
			want: []string{"Secret s"}},
		{name: "--- in a text", text: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  x: |\n    ---\n    y\n", want: []string{"ConfigMap c"}},
		{name: "a mapping in a value", text: "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x: y\n", line: 4},
		{name: "the same in the second document", text: "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\napiVersion: v1\nkind: Pod\nmetadata:\n  name: x: y\n", line: 9},
		{name: "an open bracket in the first line", text: "{", line: 1},
		{name: "tabs", text: "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: x\n", line: 4},
		{name: "no kind, in the second document", text: "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n# here\napiVersion: v1\nmetadata: {name: a}\n", line: 6},
		{name: "no name", text: "apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}\n", line: 1},
		{name: "a text", text: "\nhello\n", line: 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := Parse([]byte(test.text))
			var got []string
			for _, o := range objects {
				got = append(got, o.Ref.String())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("it has %q, want %q", got, test.want)
			}
			var syntax *SyntaxError
			switch {
			case test.line == 0 && err != nil:
				t.Error(err)
			case test.line > 0 && (!errors.As(err, &syntax) || syntax.Line != test.line):
				t.Errorf("the error is %v, want line %d", err, test.line)
			}
		})
	}
}
