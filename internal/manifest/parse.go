package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Object is an object of a manifest.
type Object struct {
	Ref
	JSON []byte // the whole of it
	Line int    // where it begins in its file, from 1
}

// Ref names an object in a cluster.
type Ref struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// SyntaxError is about a file that is no manifest.
type SyntaxError struct {
	Line int // from 1
	Err  error
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *SyntaxError) Unwrap() error { return e.Err }

// Parse reads the objects of a YAML or JSON text, in their order; lists are taken
// apart. The error is a SyntaxError.
func Parse(text []byte) ([]Object, error) {
	var objects []Object
	for _, d := range documents(text) {
		data, err := yaml.YAMLToJSON(d.text)
		if err != nil {
			return nil, d.syntaxError(err)
		}
		if string(data) == "null" { // only comments
			continue
		}
		these, err := objectsOf(data, d.line)
		if err != nil {
			return nil, &SyntaxError{d.line, err}
		}
		objects = append(objects, these...)
	}
	return objects, nil
}

// document is a part of a file between two lines of ---.
type document struct {
	text []byte
	line int // of its beginning, from 1
}

func documents(text []byte) []document {
	var all []document
	current := document{line: 1}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if rest, ok := bytes.CutPrefix(line, []byte("---")); ok {
			if rest = bytes.TrimSpace(rest); len(rest) == 0 || rest[0] == '#' {
				all = append(all, current)
				current = document{line: number + 1}
				continue
			}
		}
		// What errors name as the place of an object is its first line with something in it.
		if trimmed := bytes.TrimSpace(line); len(current.text) == 0 && (len(trimmed) == 0 || trimmed[0] == '#') {
			current.line = number + 1
			continue
		}
		current.text = append(current.text, line...)
	}
	return append(all, current)
}

var yamlLine = regexp.MustCompile(`^(?:error converting YAML to JSON: )?yaml: (?:line (\d+): )?`)

// syntaxError turns the line within a document, which the parser says where it is not
// the first one, into that of the file.
func (d document) syntaxError(err error) error {
	text, line := err.Error(), d.line
	if match := yamlLine.FindStringSubmatch(text); match != nil {
		text = strings.TrimPrefix(text, match[0])
		if within, err := strconv.Atoi(match[1]); err == nil {
			line += within - 1
		}
	}
	return &SyntaxError{line, errors.New(text)}
}

func objectsOf(data []byte, line int) ([]Object, error) {
	var o struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("this is not an object of Kubernetes: %w", err)
	}
	if o.APIVersion == "v1" && o.Kind == "List" {
		var objects []Object
		for _, item := range o.Items {
			these, err := objectsOf(item, line)
			if err != nil {
				return nil, err
			}
			objects = append(objects, these...)
		}
		return objects, nil
	}
	for _, field := range [][2]string{{"apiVersion", o.APIVersion}, {"kind", o.Kind}, {"metadata.name", o.Metadata.Name}} {
		if field[1] == "" {
			return nil, fmt.Errorf("this object has no %s", field[0])
		}
	}
	return []Object{{Ref{o.APIVersion, o.Kind, o.Metadata.Namespace, o.Metadata.Name}, data, line}}, nil
}
