package manifest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Request asks the apiserver. An answer that is not a success is an error; Missing of a
// Cluster has to know that of 404.
type Request func(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error)

// Cluster is where objects are applied.
type Cluster struct {
	Request Request
	// Missing reports whether an error of Request says that there is no such object or
	// API.
	Missing func(error) bool
	// Manager is the name that what is applied is recorded under (server-side apply).
	Manager string
}

// kinds are the resources of one pass by API version and kind: a CustomResourceDefinition
// may bring new ones at any time.
type kinds map[string]map[string]resource

type resource struct {
	Name       string `json:"name"`
	Kind       string `json:"kind"`
	Namespaced bool   `json:"namespaced"`
}

// apply makes an object in the cluster as it is given, and returns what it is called
// there. Fields that somebody else has set are taken over.
func (c Cluster) apply(ctx context.Context, known kinds, o Object) (Ref, error) {
	ref, path, err := c.locate(ctx, known, o.Ref)
	if err != nil {
		return ref, err
	}
	query := url.Values{"fieldManager": {c.Manager}, "force": {"true"}}
	_, err = c.Request(ctx, http.MethodPatch, path+"?"+query.Encode(), "application/apply-patch+yaml", o.JSON)
	return ref, err
}

// remove deletes an object. That there is none, or no such API any more, is no error.
func (c Cluster) remove(ctx context.Context, known kinds, ref Ref) error {
	_, path, err := c.locate(ctx, known, ref)
	if err == nil {
		_, err = c.Request(ctx, http.MethodDelete, path, "application/json", []byte(`{"propagationPolicy":"Background"}`))
	}
	if err != nil && c.Missing(err) {
		return nil
	}
	return err
}

// locate returns the path of an object, and its name with the namespace that it has if
// it does not say.
func (c Cluster) locate(ctx context.Context, known kinds, ref Ref) (Ref, string, error) {
	prefix := "/apis/" + ref.APIVersion
	if !strings.Contains(ref.APIVersion, "/") {
		prefix = "/api/" + ref.APIVersion
	}
	r, err := c.resource(ctx, known, prefix, ref)
	if err != nil {
		return ref, "", err
	}
	switch {
	case !r.Namespaced:
		ref.Namespace = ""
		return ref, prefix + "/" + r.Name + "/" + url.PathEscape(ref.Name), nil
	case ref.Namespace == "":
		ref.Namespace = "default"
	}
	return ref, prefix + "/namespaces/" + url.PathEscape(ref.Namespace) + "/" + r.Name + "/" + url.PathEscape(ref.Name), nil
}

func (c Cluster) resource(ctx context.Context, known kinds, prefix string, ref Ref) (resource, error) {
	if r, ok := known[ref.APIVersion][ref.Kind]; ok {
		return r, nil
	}
	data, err := c.Request(ctx, http.MethodGet, prefix, "application/json", nil)
	if err != nil {
		return resource{}, fmt.Errorf("ask for the kinds of %s: %w", ref.APIVersion, err)
	}
	var list struct {
		Resources []resource `json:"resources"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return resource{}, fmt.Errorf("read the kinds of %s: %w", ref.APIVersion, err)
	}
	known[ref.APIVersion] = make(map[string]resource)
	for _, r := range list.Resources {
		if !strings.Contains(r.Name, "/") { // pods/log and the like
			known[ref.APIVersion][r.Kind] = r
		}
	}
	r, ok := known[ref.APIVersion][ref.Kind]
	if !ok {
		return r, fmt.Errorf("the cluster has no kind %s in %s", ref.Kind, ref.APIVersion)
	}
	return r, nil
}
