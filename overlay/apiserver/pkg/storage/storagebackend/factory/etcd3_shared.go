package factory

import (
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"

	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// sharedETCD3Client is the connection to etcd of all resources that are stored there by
// the same transport.
type sharedETCD3Client struct {
	client *kubernetes.Client
	refs   int
}

var (
	// sharedETCD3ClientsMu guards sharedETCD3Clients, and is held while a connection is made.
	sharedETCD3ClientsMu sync.Mutex
	sharedETCD3Clients   = map[string]*sharedETCD3Client{}
)

// acquireETCD3Client returns a client for one resource, and what gives it back. The
// resources of a transport share one connection, which is closed with the last of them.
// Each has a watcher of its own: a watcher keeps its watches in one stream, and etcd
// answers a request for progress to all watches of the stream it came by
// (https://github.com/kubernetes/kubernetes/issues/123072).
func acquireETCD3Client(c storagebackend.TransportConfig) (*kubernetes.Client, func(), error) {
	sharedETCD3ClientsMu.Lock()
	defer sharedETCD3ClientsMu.Unlock()

	key := fmt.Sprintf("%v", c) // as startCompactorOnce
	shared, found := sharedETCD3Clients[key]
	if !found {
		client, err := newETCD3Client(c)
		if err != nil {
			return nil, nil, err
		}
		shared = &sharedETCD3Client{client: client}
		sharedETCD3Clients[key] = shared
	}
	shared.refs++

	own := *shared.client.Client
	own.Watcher = clientv3.NewWatcher(shared.client.Client)
	client := &kubernetes.Client{Client: &own}
	client.Kubernetes = client

	return client, func() {
		_ = own.Watcher.Close()

		sharedETCD3ClientsMu.Lock()
		defer sharedETCD3ClientsMu.Unlock()

		shared.refs--
		if shared.refs == 0 {
			_ = shared.client.Close()
			delete(sharedETCD3Clients, key)
		}
	}, nil
}
