package experiment

import (
	"fmt"
	"os"
	"testing"

	"k3s9p/test/gvisor"
)

func TestMain(m *testing.M) { gvisor.Main(reporting{m}) }

// reporting writes the report when the tests have run, also if some have failed.
type reporting struct{ *testing.M }

func (r reporting) Run() int {
	code := r.M.Run()
	if err := writeReport(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}
