package bench

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"k3s9p/internal/proof/contract"
	"k3s9p/test/gvisor"
)

// TestRootless compares a node in namespaces of its own with a privileged one, in turn in
// one sandbox that allows both.
func TestRootless(t *testing.T) {
	gvisor.Require(t)
	bench := gvisor.Bench()
	if bench.Rounds == 0 {
		t.Skip("go tool mage bench runs this")
	}
	var results contract.RungResults
	for round := range bench.Rounds {
		t.Run(fmt.Sprintf("round %d of %d", round+1, bench.Rounds), func(t *testing.T) {
			s := inGVisor(t, new(contract.Figures))
			gvisor.ServeOutside(t, s.Outside)
			s.rung(&results.Privileged)
			s.rung(&results.Rootless, "--rootless")
		})
	}
	record(t, results)
}

// rung measures a node that is brought up with some flags.
func (s *side) rung(into *contract.RungFigures, flags ...string) {
	s.t.Helper()
	s.flags = flags
	var unpacking []float64
	s.up(&unpacking)
	s.k3s9p("down")
	s.forget()
	s.up(&into.Up)
	rootless := s.state().Rootless
	if rootless != (len(flags) > 0) {
		s.t.Fatalf("up %v: the node is in namespaces of its own: %v", flags, rootless)
	}
	s.k3s9p("kubectl", "run", "one", "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
	s.k3s9p("kubectl", "wait", "--for=condition=ready", "pod/one", "--timeout=60s")
	inPod := func(args ...string) string {
		return s.k3s9p(append([]string{"kubectl", "exec", "one", "--", "/web"}, args...)...)
	}
	outside := gvisor.OutsideAddress + ":8080"
	if rootless {
		into.Gateway = append(into.Gateway, s.gateway())
	}
	for range transfers {
		into.Download = append(into.Download, s.rate(inPod("download", fmt.Sprintf("http://%s/bytes?mib=%d", outside, mib))))
		into.Upload = append(into.Upload, s.rate(inPod("upload", "http://"+outside+"/receive", strconv.Itoa(mib))))
	}
	for range 3 {
		rate, _ := s.asked(inPod("ask", "http://"+outside+"/bytes?mib=0", asking))
		into.Latency = append(into.Latency, 4*1000/rate) // four ask at once
	}
	if rootless {
		s.k3s9p("kubectl", "run", "holds", "--image=k3s9p.local/web:1", "--image-pull-policy=Never", "--command", "--", "/web", "hold", outside, "1000")
		for deadline := time.Now().Add(time.Minute); !strings.Contains(s.k3s9p("kubectl", "logs", "holds", "--ignore-errors"), "1000"); time.Sleep(time.Second) {
			if time.Now().After(deadline) {
				s.t.Fatal("1,000 connections were not opened within a minute")
			}
		}
		into.GatewayBusy = append(into.GatewayBusy, s.gateway())
	}
	s.t.Logf("%v: %+v", flags, *into)
	s.k3s9p("down", "--purge")
}

// gateway is the memory of the process outside of the node's namespaces, in bytes.
func (s *side) gateway() float64 {
	s.t.Helper()
	var kilobytes float64
	output := s.in("sh", "-c", `grep -h VmRSS /proc/$(pgrep -o -f ^k3s9p-outside)/status`)
	if _, err := fmt.Sscanf(output, "VmRSS: %f kB", &kilobytes); err != nil {
		s.t.Fatalf("the memory of the gateway: %v: %s", err, output)
	}
	return kilobytes * 1024
}
