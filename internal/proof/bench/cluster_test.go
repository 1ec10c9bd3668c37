package bench

import (
	"slices"
	"strings"
	"testing"

	"k3s9p/internal/node"
	"k3s9p/internal/proof/contract"
)

// Most limits are the most that is allowed, some the least that is wanted; a figure
// that is the limit itself is met either way.
func TestLimits(t *testing.T) {
	for _, test := range []struct {
		measurement
		want string
	}{
		{measurement{value: 1.1, limit: 1.0}, "OVER THE LIMIT"},
		{measurement{value: 1.0, limit: 1.0}, "ok"},
		{measurement{value: 0.2, limit: 0.3, least: true}, "BELOW THE LIMIT"},
		{measurement{value: 0.3, limit: 0.3, least: true}, "ok"},
	} {
		if line := test.String(); !strings.Contains(line, ") "+test.want+" ") || test.missed() != (test.want != "ok") {
			t.Errorf("%v prints %q, want %q", test.measurement, line, test.want)
		}
	}
}

// What the sandbox used before does not count as the node's.
func TestFiguresOfACluster(t *testing.T) {
	one := []float64{1}
	of := func(up float64, rss, pss int64) (f contract.Figures) {
		f = contract.Figures{UpUnpacking: one, UpNew: []float64{9, up, 1}, UpStopped: one, Down: one, KubeletHealthy: one,
			NodeDownload: []float64{200}, NodeUpload: one, PodDownload: []float64{50}, PodUpload: one, BetweenPods: one,
			Pod:        contract.Asked{Rate: []float64{4000}, P99: one, Download: one, UDP: []float64{8}},
			Service:    contract.Asked{Rate: []float64{3000}, P99: []float64{3}, Download: one, UDP: []float64{2}},
			Components: []contract.Component{{Name: "kubelet", Memory: node.Memory{RSS: rss, PSS: pss}}}}
		f.Machine.Before, f.Machine.Idle = contract.MachineMemory{Own: 60e6}, contract.MachineMemory{Own: 400e6, Files: 200e6}
		return f
	}
	figures := inGVisor("gVisor", contract.Results{Native: of(3, 150e6, 100e6), GVisor: of(6, 200e6, 0)})
	for name, want := range map[string]float64{
		"gVisor: up, unpacked before, against natively":       2,
		"gVisor: memory of the idle node, in all":             200,
		"gVisor: memory of the idle node, the host's":         340,
		"gVisor: 50 MiB into a pod, against the node's own":   0.25,
		"gVisor: 50 MiB out of a pod, against the node's own": 1,
		"gVisor: up of a stopped cluster":                     1,
		"gVisor: down":                                        1,
		"gVisor: up, with unpacking":                          1,
		"gVisor: up, unpacked before":                         6,
		"gVisor: 50 MiB between pods":                         1,

		"gVisor: requests by a Service, against the pod itself":           0.75,
		"gVisor: 99 of 100 requests by a Service, against the pod itself": 3,
		"gVisor: 50 MiB by a Service, against the pod itself":             1,
		"gVisor: datagrams by a Service, against the pod itself":          0.25,
	} {
		i := slices.IndexFunc(figures, func(m measurement) bool { return m.name == name })
		if i < 0 || figures[i].value != want {
			t.Errorf("%s is not %v in %v", name, want, figures)
		}
	}
}
