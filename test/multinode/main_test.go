package multinode

import (
	"testing"

	"k3s9p/test/gvisor"
)

func TestMain(m *testing.M) { gvisor.Main(m) }
