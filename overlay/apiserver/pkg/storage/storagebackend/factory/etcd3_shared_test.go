package factory

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// emptyEtcd answers as etcd where nothing is stored, and notes by which connections it
// is asked. That is not the number of connections: an etcd client makes one more at its
// start, and drops it.
type emptyEtcd struct {
	etcdserverpb.UnimplementedKVServer
	etcdserverpb.UnimplementedWatchServer
	etcdserverpb.UnimplementedMaintenanceServer

	mu      sync.Mutex
	asked   map[string]int // by connection
	streams int            // of watches
}

func (s *emptyEtcd) note(ctx context.Context) {
	from, _ := peer.FromContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[from.Addr.String()]++
}

// connections are those by which it has been asked until now.
func (s *emptyEtcd) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func (s *emptyEtcd) Range(ctx context.Context, _ *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	s.note(ctx)
	return &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}}, nil
}

func (s *emptyEtcd) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	return &etcdserverpb.StatusResponse{Version: "3.6.0"}, nil
}

func (s *emptyEtcd) Watch(stream etcdserverpb.Watch_WatchServer) error {
	s.note(stream.Context())
	s.mu.Lock()
	s.streams++
	s.mu.Unlock()
	for id := int64(0); ; id++ {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if request.GetCreateRequest() == nil {
			continue
		}
		if err := stream.Send(&etcdserverpb.WatchResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}, WatchId: id, Created: true}); err != nil {
			return err
		}
	}
}

// serve returns an etcd of the test's own, and the transport to it.
func serve(t *testing.T) (*emptyEtcd, storagebackend.TransportConfig) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &emptyEtcd{asked: make(map[string]int)}
	g := grpc.NewServer()
	etcdserverpb.RegisterKVServer(g, s)
	etcdserverpb.RegisterWatchServer(g, s)
	etcdserverpb.RegisterMaintenanceServer(g, s)
	go g.Serve(l)
	t.Cleanup(g.Stop)
	return s, storagebackend.TransportConfig{ServerList: []string{"http://" + l.Addr().String()}}
}

// resource is what a server has for one of its resources.
type resource struct {
	storage.Interface
	prefix  string
	destroy DestroyFunc
}

// create makes a resource as the registry of a server does.
func create(t *testing.T, transport storagebackend.TransportConfig, name string) resource {
	t.Helper()
	scheme := runtime.NewScheme()
	utilruntime.Must(example.AddToScheme(scheme))
	utilruntime.Must(examplev1.AddToScheme(scheme))
	config := storagebackend.NewDefaultConfig("/registry", serializer.NewCodecFactory(scheme).LegacyCodec(examplev1.SchemeGroupVersion))
	config.Transport, config.CompactionInterval, config.DBMetricPollInterval = transport, 0, 0
	s, destroy, err := Create(*config.ForResource(schema.GroupResource{Group: "example.apiserver.k8s.io", Resource: name}),
		func() runtime.Object { return &example.Pod{} }, func() runtime.Object { return &example.PodList{} }, "/"+name)
	if err != nil {
		t.Fatal(err)
	}
	r := resource{s, "/" + name, sync.OnceFunc(destroy)}
	t.Cleanup(r.destroy)
	return r
}

// ask makes a resource ask etcd.
func (r resource) ask(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.Get(ctx, r.prefix+"/none", storage.GetOptions{IgnoreNotFound: true}, &example.Pod{}); err != nil {
		t.Errorf("ask etcd: %v", err)
	}
}

func TestResourcesShareAConnection(t *testing.T) {
	s, transport := serve(t)
	pods, services := create(t, transport, "pods"), create(t, transport, "services")
	pods.ask(t)
	services.ask(t)
	if n := s.connections(); n != 1 {
		t.Errorf("two resources have asked by %d connections", n)
	}
	pods.destroy()
	services.ask(t)
	create(t, transport, "nodes").ask(t)
	if n := s.connections(); n != 1 {
		t.Errorf("after one of them has gone they have asked by %d connections", n)
	}
}

func TestLastResourceClosesTheConnection(t *testing.T) {
	s, transport := serve(t)
	before := len(sharedETCD3Clients)
	pods, services := create(t, transport, "pods"), create(t, transport, "services")
	pods.ask(t)
	pods.destroy()
	services.destroy()
	if n := len(sharedETCD3Clients); n != before {
		t.Errorf("%d clients are kept, %d were before", n, before)
	}
	create(t, transport, "pods").ask(t)
	if n := s.connections(); n != 2 {
		t.Errorf("a resource that comes back asks by the connection of before: there are %d", n)
	}
}

func TestTransportsDoNotShare(t *testing.T) {
	one, toOne := serve(t)
	other, toOther := serve(t)
	create(t, toOne, "pods").ask(t)
	create(t, toOther, "pods").ask(t)
	if one.connections() != 1 || other.connections() != 1 {
		t.Errorf("the servers were asked by %d and %d connections", one.connections(), other.connections())
	}
}

func TestResourcesHaveStreamsOfTheirOwn(t *testing.T) {
	s, transport := serve(t)
	for i, prefix := range []string{"/registry/pods/", "/registry/services/"} {
		client, release, err := acquireETCD3Client(transport)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		created := <-client.Watch(t.Context(), prefix, clientv3.WithCreatedNotify())
		if err := created.Err(); err != nil || !created.Created {
			t.Fatalf("watch %s: %+v, %v", prefix, created, err)
		}
		s.mu.Lock()
		if s.streams != i+1 || len(s.asked) != 1 {
			t.Errorf("%d resources watch by %d streams of %d connections", i+1, s.streams, len(s.asked))
		}
		s.mu.Unlock()
	}
}

func TestNoClientIsKeptThatCannotConnect(t *testing.T) {
	before := len(sharedETCD3Clients)
	_, _, err := acquireETCD3Client(storagebackend.TransportConfig{ServerList: []string{"https://127.0.0.1:1"}, CertFile: "/nonexistent", KeyFile: "/nonexistent"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("got the error %v", err)
	}
	if n := len(sharedETCD3Clients); n != before {
		t.Errorf("%d clients are kept, %d were before", n, before)
	}
}
