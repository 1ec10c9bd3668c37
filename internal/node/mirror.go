package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// mirror is a collection of the cluster as it is now, of objects of type T: what the
// informers of client-go are. Who asks for a thousand Services anew because one of them has
// changed is late.
type mirror[T any, O interface {
	*T
	metav1.Object
}] struct {
	client *client
	path   string

	mu       sync.Mutex
	complete bool // it was read
	objects  map[types.UID]T
}

// follow keeps the mirror, and calls changed whenever that has changed, until ctx ends.
func (m *mirror[T, O]) follow(ctx context.Context, changed func()) {
	untilEnd(ctx, func() error {
		version, err := m.read(ctx)
		if err != nil {
			return err
		}
		changed()
		return m.client.events(ctx, m.path, version, func(event string, object json.RawMessage) error {
			if err := m.apply(watch.EventType(event), object); err != nil {
				return err
			}
			changed()
			return nil
		})
	})
}

// read reads all of the collection, and returns its version.
func (m *mirror[T, O]) read(ctx context.Context) (version string, err error) {
	var list struct {
		metav1.ListMeta `json:"metadata"`
		Items           []T `json:"items"`
	}
	if err := m.client.get(ctx, m.path, &list); err != nil {
		return "", err
	}
	objects := make(map[types.UID]T)
	for i := range list.Items {
		objects[O(&list.Items[i]).GetUID()] = list.Items[i]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complete, m.objects = true, objects
	return list.ResourceVersion, nil
}

// apply is what an event of a watch says.
func (m *mirror[T, O]) apply(event watch.EventType, data json.RawMessage) error {
	var object T
	switch event {
	case watch.Bookmark:
		return nil
	case watch.Added, watch.Modified, watch.Deleted:
		if err := json.Unmarshal(data, &object); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the watch of %s ends with %s: %s", m.path, event, data)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if uid := O(&object).GetUID(); event == watch.Deleted {
		delete(m.objects, uid)
	} else {
		m.objects[uid] = object
	}
	return nil
}

// list is the collection, by namespace and name, or false before it was read.
func (m *mirror[T, O]) list() ([]T, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := func(t T) string { return O(&t).GetNamespace() + "/" + O(&t).GetName() }
	return slices.SortedFunc(maps.Values(m.objects), func(a, b T) int { return strings.Compare(name(a), name(b)) }), m.complete
}
