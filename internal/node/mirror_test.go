package node

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// serviceJSON is a Service as the apiserver shows it.
func serviceJSON(name, version string) string {
	return fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q,"uid":"uid-of-%s","resourceVersion":%q}}`, name, name, version)
}

// A mirror has what was there, and what became of it since; and when a watch ends in an
// error, as it does when the version is too old, it reads all again.
func TestMirror(t *testing.T) {
	events := make(chan string)
	lists := make(chan string, 2)
	lists <- serviceJSON("a", "1")
	lists <- serviceJSON("c", "9")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("watch") == "" {
			fmt.Fprintf(w, `{"metadata":{"resourceVersion":"7"},"items":[%s]}`, <-lists)
			return
		}
		if version := r.FormValue("resourceVersion"); version != "7" {
			t.Errorf("the watch begins at version %q", version)
		}
		for {
			select {
			case <-r.Context().Done():
				return
			case event := <-events:
				fmt.Fprintln(w, event)
				w.(http.Flusher).Flush()
			}
		}
	}))
	defer server.Close()
	m := mirror[corev1.Service, *corev1.Service]{client: clientOf(server.URL, nil), path: servicesPath}
	if _, complete := m.list(); complete {
		t.Error("the mirror is complete before it was read")
	}
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go m.follow(ctx, func() { changed <- struct{}{} })
	for _, step := range []struct{ event, want string }{
		{"", "a:1"},
		{`{"type":"ADDED","object":` + serviceJSON("b", "8") + `}`, "a:1 b:8"},
		{`{"type":"MODIFIED","object":` + serviceJSON("a", "9") + `}`, "a:9 b:8"},
		{`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"10"}}}`, "a:9 b:8"},
		{`{"type":"DELETED","object":` + serviceJSON("b", "11") + `}`, "a:9"},
		{`{"type":"ERROR","object":{"code":410,"reason":"Expired"}}`, "c:9"},
	} {
		if step.event != "" {
			events <- step.event
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing has changed after %q", step.event)
		}
		services, _ := m.list()
		var have []string
		for _, s := range services {
			have = append(have, s.Name+":"+s.ResourceVersion)
		}
		if got := strings.Join(have, " "); got != step.want {
			t.Errorf("after %q the mirror has %q, not %q", step.event, got, step.want)
		}
	}
}
