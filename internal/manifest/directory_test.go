package manifest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var errMissing = errors.New("404")

// apiserver keeps the paths of objects, and knows so many kinds.
type apiserver struct {
	resources map[string]string // path of an API → the list of its resources
	objects   map[string]string
	requests  []string
	refuse    string // objects with this in their path
}

func newAPIServer() *apiserver {
	return &apiserver{objects: make(map[string]string), resources: map[string]string{
		"/api/v1":       `{"resources":[{"name":"configmaps","kind":"ConfigMap","namespaced":true},{"name":"namespaces","kind":"Namespace"},{"name":"namespaces/status","kind":"Namespace"}]}`,
		"/apis/apps/v1": `{"resources":[{"name":"deployments","kind":"Deployment","namespaced":true}]}`,
	}}
}

func (a *apiserver) request(_ context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	path, query, _ := strings.Cut(path, "?")
	a.requests = append(a.requests, method+" "+path)
	switch {
	case method == http.MethodGet:
		if list, ok := a.resources[path]; ok {
			return []byte(list), nil
		}
	case a.refuse != "" && strings.Contains(path, a.refuse):
		return nil, errors.New("refused")
	case method == http.MethodPatch && contentType == "application/apply-patch+yaml" && query == "fieldManager=k3s9p&force=true":
		a.objects[path] = string(body)
		return nil, nil
	case method == http.MethodDelete && a.objects[path] != "":
		delete(a.objects, path)
		return nil, nil
	}
	return nil, fmt.Errorf("%s %s: %w", method, path, errMissing)
}

func (a *apiserver) has() string { return strings.Join(slices.Sorted(maps.Keys(a.objects)), " ") }

const (
	configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME}\n---\n"
	web       = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\n"
	gadget    = "apiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: g}\n"

	configMaps = "/api/v1/namespaces/default/configmaps/"
	webPath    = "/apis/apps/v1/namespaces/shop/deployments/web"
	gadgetPath = "/apis/example.com/v1/gadgets/g"
)

// directory is one whose files the test writes.
type directory struct {
	*Directory
	t      *testing.T
	server *apiserver
}

func newDirectory(t *testing.T) *directory {
	d := &directory{t: t, server: newAPIServer()}
	d.reopen(t.TempDir())
	return d
}

// reopen is what the next start does.
func (d *directory) reopen(dir string) {
	opened, err := Open(filepath.Join(dir, "manifests"), filepath.Join(dir, "manifests.json"), Cluster{
		Request: d.server.request, Manager: "k3s9p",
		Missing: func(err error) bool { return errors.Is(err, errMissing) },
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Directory = opened
}

func (d *directory) write(name, text string) {
	d.t.Helper()
	err := errors.Join(os.MkdirAll(d.path, 0o755), os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o644))
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *directory) remove(name string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		d.t.Fatal(err)
	}
}

// sync returns the errors of the files.
func (d *directory) sync() map[string]string {
	d.t.Helper()
	files, err := d.Sync(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	failed := make(map[string]string)
	for _, f := range files {
		if f.Error != "" {
			failed[f.Name] = f.Error
		}
	}
	return failed
}

func (d *directory) want(objects ...string) {
	d.t.Helper()
	if got := d.server.has(); got != strings.Join(objects, " ") {
		d.t.Errorf("the cluster has %s, want %q", got, objects)
	}
}

func named(names ...string) string {
	text := ""
	for _, name := range names {
		text += strings.ReplaceAll(configMap, "NAME", name)
	}
	return text
}

func TestSyncFollowsFiles(t *testing.T) {
	d := newDirectory(t)
	d.sync() // no directory yet
	d.write("a.yaml", named("one", "two"))
	d.write("b.yml", web)
	d.write("notes.txt", "not a manifest")
	d.write(".a.yaml.swp", "{")
	if failed := d.sync(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	d.want(configMaps+"one", configMaps+"two", webPath)
	d.server.requests = nil
	d.sync()
	if d.server.requests != nil {
		t.Errorf("nothing has changed, and it asks %q", d.server.requests)
	}
	d.write("a.yaml", named("two", "three"))
	d.sync()
	d.sync()
	d.want(configMaps+"three", configMaps+"two", webPath)
	d.remove("b.yml")
	d.sync()
	d.sync()
	d.want(configMaps+"three", configMaps+"two")
	d.server.requests = nil
	d.sync()
	if d.server.requests != nil {
		t.Errorf("all is deleted, and it asks %q", d.server.requests)
	}
}

// A file that is cut off while it is written, or away while an editor replaces it, costs
// no object.
func TestSyncInTheMiddleOfAChange(t *testing.T) {
	d := newDirectory(t)
	whole := named("one", "two") + web
	d.write("a.yaml", whole)
	d.sync()
	all := []string{configMaps + "one", configMaps + "two", webPath}
	d.want(all...)
	for _, meanwhile := range []struct {
		name   string
		change func()
	}{
		{"half of it", func() { d.write("a.yaml", named("one")) }},
		{"away", func() { d.remove("a.yaml") }},
	} {
		d.server.requests = nil
		meanwhile.change()
		d.sync()
		d.want(all...)
		d.write("a.yaml", whole)
		for range 3 {
			if failed := d.sync(); len(failed) > 0 {
				t.Errorf("%s: failed: %v", meanwhile.name, failed)
			}
		}
		for _, request := range d.server.requests {
			if strings.HasPrefix(request, http.MethodDelete) {
				t.Errorf("%s: %s", meanwhile.name, request)
			}
		}
		d.want(all...)
	}
	// An object that two files have held is away from both as long as from one.
	d.write("b.yaml", named("one"))
	d.sync()
	d.write("a.yaml", named("two")+web)
	d.write("b.yaml", named("three"))
	d.sync()
	d.want(configMaps+"one", configMaps+"three", configMaps+"two", webPath)
	d.write("a.yaml", whole)
	d.remove("b.yaml")
	d.sync()
	d.sync()
	d.want(all...)
	// However long that takes.
	for _, nothing := range []string{"", "\n", "---\n# later\n"} {
		d.write("a.yaml", nothing)
		for range 5 {
			if failed := d.sync(); !strings.Contains(failed["a.yaml"], "holds no objects any more") {
				t.Errorf("with %q failed: %v", nothing, failed)
			}
		}
		d.want(all...)
	}
	d.remove("a.yaml")
	d.sync()
	d.sync()
	d.want()
}

func TestSyncRemembers(t *testing.T) {
	d := newDirectory(t)
	d.write("a.yaml", named("one", "two"))
	d.write("b.yaml", web)
	d.sync()
	d.server.objects[configMaps+"one"] = "what the user has made of it"
	d.server.requests = nil
	d.remove("b.yaml")
	d.reopen(filepath.Dir(d.path))
	d.sync()
	d.sync()
	d.want(configMaps+"one", configMaps+"two")
	if d.server.objects[configMaps+"one"] != "what the user has made of it" {
		t.Errorf("an unchanged manifest was applied again: %q", d.server.requests)
	}
}

// An object that moves to another manifest is never away.
func TestSyncMoves(t *testing.T) {
	d := newDirectory(t)
	d.write("a.yaml", named("one", "two"))
	d.write("b.yaml", named("three"))
	d.sync()
	d.server.requests = nil
	d.write("a.yaml", named("one"))
	d.write("b.yaml", named("three", "two"))
	d.sync()
	if err := os.Rename(filepath.Join(d.path, "b.yaml"), filepath.Join(d.path, "c.yaml")); err != nil {
		t.Fatal(err)
	}
	d.sync()
	d.sync()
	d.want(configMaps+"one", configMaps+"three", configMaps+"two")
	for _, request := range d.server.requests {
		if strings.HasPrefix(request, http.MethodDelete) {
			t.Error(request)
		}
	}
}

func TestSyncReportsTheBroken(t *testing.T) {
	d := newDirectory(t)
	d.write("a.yaml", named("one"))
	d.write("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n\tname: x\n")
	d.write("c.yaml", web)
	failed := d.sync()
	if !strings.HasPrefix(failed["b.yaml"], "line 4: ") || len(failed) != 1 {
		t.Errorf("failed: %v", failed)
	}
	d.want(configMaps+"one", webPath)
	d.write("a.yaml", "{")
	if failed := d.sync(); len(failed) != 2 {
		t.Errorf("failed: %v", failed)
	}
	d.want(configMaps+"one", webPath) // what the broken one had brought stays
	d.write("a.yaml", named("one"))
	d.write("b.yaml", named("x"))
	if failed := d.sync(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	d.want(configMaps+"one", configMaps+"x", webPath)
}

func TestSyncTriesAgain(t *testing.T) {
	d := newDirectory(t)
	d.write("a.yaml", named("one")+gadget)
	d.server.refuse = "/two"
	d.write("b.yaml", named("two", "three"))
	failed := d.sync()
	if !strings.Contains(failed["a.yaml"], "line 5: Gadget g: ask for the kinds of example.com/v1") || failed["b.yaml"] != "line 1: ConfigMap default/two: refused" {
		t.Errorf("failed: %v", failed)
	}
	d.want(configMaps+"one", configMaps+"three")
	d.server.requests = nil
	d.sync()
	if d.server.requests != nil {
		t.Errorf("it asks at once again: %q", d.server.requests)
	}
	d.server.refuse = ""
	d.server.resources["/apis/example.com/v1"] = `{"resources":[{"name":"gadgets","kind":"Gadget"}]}`
	for name, last := range d.seen {
		last.tried = last.tried.Add(-again)
		d.seen[name] = last
	}
	if failed := d.sync(); len(failed) > 0 {
		t.Errorf("failed: %v", failed)
	}
	d.want(configMaps+"one", configMaps+"three", configMaps+"two", gadgetPath)
	// The API goes before what is of it.
	delete(d.server.resources, "/apis/example.com/v1")
	delete(d.server.objects, gadgetPath)
	d.write("a.yaml", named("one"))
	for range 2 {
		if failed := d.sync(); len(failed) > 0 {
			t.Errorf("failed: %v", failed)
		}
	}
	d.want(configMaps+"one", configMaps+"three", configMaps+"two")
}

func TestApplySome(t *testing.T) {
	d := newDirectory(t)
	d.write("a.yaml", named("one"))
	d.write("b.yaml", named("two"))
	d.write("c.yaml", "{")
	if err := d.Apply(t.Context(), "b.yaml", "c.yaml"); err == nil || !strings.Contains(err.Error(), "c.yaml: line 1: ") || strings.Contains(err.Error(), "b.yaml") {
		t.Errorf("the error is %v", err)
	}
	d.want(configMaps + "two")
	d.server.requests = nil
	d.reopen(filepath.Dir(d.path))
	if err := d.Apply(t.Context(), "b.yaml"); err != nil || d.server.requests != nil {
		t.Errorf("it asks again: %q, %v", d.server.requests, err)
	}
	d.sync()
	d.want(configMaps+"one", configMaps+"two")
}

// What could not be deleted is deleted later, also by the next start.
func TestSyncDeletesLater(t *testing.T) {
	d := newDirectory(t)
	d.write("a.yaml", named("one", "two"))
	d.sync()
	d.server.refuse = "/one"
	d.remove("a.yaml")
	d.sync()
	if _, err := d.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "delete ConfigMap default/one, which a.yaml had brought: refused") {
		t.Errorf("the error is %v", err)
	}
	d.want(configMaps + "one")
	d.server.refuse = ""
	d.reopen(filepath.Dir(d.path))
	d.sync()
	d.sync()
	d.want()
}
