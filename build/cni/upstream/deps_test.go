package upstream

import (
	_ "github.com/containernetworking/plugins/pkg/testutils"
	_ "github.com/onsi/ginkgo/v2"
	_ "github.com/onsi/gomega"
)
