package upstream

import (
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/hanwen/go-fuse/v2/fs"
	_ "github.com/stretchr/testify/assert"
	_ "k8s.io/apiserver/pkg/storage/etcd3/testserver"
)
