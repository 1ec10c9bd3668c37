package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k3s9p/internal/node"
	"k3s9p/internal/proof/contract"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
	"k3s9p/test/native"
)

// machine is where a node runs.
type machine interface {
	K3s9p(args ...string) (string, error)
	In(args ...string) (string, error)
	Outside(func() error) error
}

// side is one of the two that are compared, in one round.
type side struct {
	machine
	t            *testing.T
	data, images string   // directories
	web          string   // test/web, to be run on the node
	flags        []string // of up
	// memory is that of this machine that is used by the sandbox.
	memory func() contract.MachineMemory
	*contract.Figures
}

// sandbox has a Cluster's Try as In.
type sandbox struct{ *cluster.Cluster }

func (s sandbox) In(args ...string) (string, error) { return s.Try(2*time.Minute, args...) }

func inGVisor(t *testing.T, f *contract.Figures) *side {
	const web = "/usr/local/bin/web"
	c := cluster.Start(t, gvisor.Options{Files: map[string]string{web: gvisor.Program(contract.Web)}})
	return &side{sandbox{c}, t, node.DefaultData, cluster.Images, web, nil, func() contract.MachineMemory { return memoryOf(c.Processes()) }, f}
}

func natively(t *testing.T, f *contract.Figures) *side {
	m := native.Start(t)
	images := t.TempDir()
	if err := os.Link(gvisor.Program(contract.WebImage), filepath.Join(images, "web.tar")); err != nil {
		t.Fatal(err)
	}
	return &side{m, t, m.Data, images, gvisor.Program(contract.Web), nil, func() contract.MachineMemory { return contract.MachineMemory{} }, f}
}

// memoryOf is what processes of this machine use together.
func memoryOf(pids []int) (sum contract.MachineMemory) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(data)) {
			var name string
			var kilobytes int64
			if _, err := fmt.Sscan(line, &name, &kilobytes); err != nil {
				continue
			}
			switch name {
			case "Pss_Anon:", "Pss_Shmem:":
				sum.Own += kilobytes << 10
			case "Pss_File:":
				sum.Files += kilobytes << 10
			}
		}
	}
	return sum
}

func TestCluster(t *testing.T) {
	gvisor.Require(t)
	bench := gvisor.Bench()
	if bench.Rounds == 0 {
		t.Skip("go tool mage bench runs this")
	}
	var results contract.Results
	for round := range bench.Rounds {
		for _, of := range []struct {
			name  string
			start func(*testing.T, *contract.Figures) *side
			into  *contract.Figures
		}{{"natively", natively, &results.Native}, {"in gVisor", inGVisor, &results.GVisor}} {
			t.Run(fmt.Sprintf("round %d of %d, %s", round+1, bench.Rounds, of.name), func(t *testing.T) {
				of.start(t, of.into).measure(round == 0)
			})
		}
	}
	record(t, results)
}

// record writes what was measured, unless the test has failed.
func record(t *testing.T, results any) {
	t.Helper()
	if t.Failed() {
		return
	}
	data, err := json.MarshalIndent(results, "", "  ")
	if err == nil {
		err = os.WriteFile(gvisor.Bench().Results, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// measure is one round. Memory and network are measured in the first: the one after
// the first start, before anything else has run there.
func (s *side) measure(first bool) {
	if first {
		s.Machine.Before = s.memory()
	}
	s.up(&s.UpUnpacking)
	if first {
		s.idle()
	}
	s.down()
	s.forget()
	s.up(&s.UpNew)
	for range 3 {
		s.kubelet()
	}
	s.down()
	s.up(&s.UpStopped)
	if first {
		s.network()
	}
	s.down()
}

// k3s9p has to succeed.
func (s *side) k3s9p(args ...string) string {
	s.t.Helper()
	output, err := s.K3s9p(args...)
	if err != nil {
		s.t.Fatalf("k3s9p %v: %v\n%s", args, err, output)
	}
	return output
}

// in runs a program on the node, which has to succeed.
func (s *side) in(args ...string) string {
	s.t.Helper()
	output, err := s.In(args...)
	if err != nil {
		s.t.Fatalf("%v on the node: %v\n%s", args, err, output)
	}
	return output
}

func (s *side) up(into *[]float64) {
	s.t.Helper()
	start := time.Now()
	output := s.k3s9p(append([]string{"up", "--detach", "--images=" + s.images}, s.flags...)...)
	*into = append(*into, time.Since(start).Seconds())
	s.t.Logf("up: %.2f s\n%s", time.Since(start).Seconds(), output)
}

func (s *side) down() {
	s.t.Helper()
	start := time.Now()
	s.k3s9p("down")
	s.Down = append(s.Down, time.Since(start).Seconds())
	s.t.Logf("down: %.2f s", time.Since(start).Seconds())
}

// forget removes what a stopped node keeps, except for its programs.
func (s *side) forget() {
	s.t.Helper()
	s.in("sh", "-c", `for f in "$0"/*; do case "$f" in */bundle) ;; *) rm -r --one-file-system "$f" || exit ;; esac; done`, s.data)
}

// kubelet kills the kubelet, which the supervisor starts anew, and measures from there
// until it is healthy.
func (s *side) kubelet() {
	s.t.Helper()
	s.in("kill", "-KILL", strconv.Itoa(s.program("kubelet").PID))
	var healthy int64
	answer := s.in(s.web, "again", "http://127.0.0.1:10248/healthz")
	if _, err := fmt.Sscan(answer, &healthy); err != nil {
		s.t.Fatalf("await the kubelet: %v: %s", err, answer)
	}
	took := time.UnixMilli(healthy).Sub(s.program("kubelet").Since).Seconds()
	s.KubeletHealthy = append(s.KubeletHealthy, took)
	s.t.Logf("kubelet: %.2f s", took)
}

// program is the state of one of the node's.
func (s *side) program(name string) node.Program {
	s.t.Helper()
	for _, program := range s.state().Programs {
		if program.Name == name && program.PID != 0 {
			return program
		}
	}
	s.t.Fatalf("no %s runs on the node", name)
	return node.Program{}
}

func (s *side) state() (state node.State) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.k3s9p("status", "-o", "json")), &state); err != nil {
		s.t.Fatalf("read k3s9p status -o json: %v", err)
	}
	return state
}

// quiet is how long a node is left alone before it counts as idle.
const quiet = 30 * time.Second

// idle measures the memory of a node without pods.
func (s *side) idle() {
	s.t.Helper()
	time.Sleep(quiet)
	s.Machine.Idle = s.memory()
	state := s.state()
	s.Components = []contract.Component{{Name: "k3s9p", Memory: state.Memory}}
	for _, program := range state.Programs {
		s.Components = append(s.Components, contract.Component{Name: program.Name, Memory: program.Memory})
	}
}

const (
	mib       = 50 // that are moved at once
	transfers = 5  // of each kind, in turn
)

// network moves data by a process of the node, and in pods by the same program.
func (s *side) network() {
	s.t.Helper()
	gvisor.ServeOutside(s.t, s.Outside)
	for _, pod := range []string{"one", "two"} {
		s.k3s9p("kubectl", "run", pod, "--image=k3s9p.local/web:1", "--image-pull-policy=Never")
	}
	s.k3s9p("kubectl", "wait", "--for=condition=ready", "pod/one", "pod/two", "--timeout=60s")
	var other corev1.Pod
	if err := json.Unmarshal([]byte(s.k3s9p("kubectl", "get", "pod", "two", "-o", "json")), &other); err != nil {
		s.t.Fatalf("read the pod two: %v", err)
	}
	onNode := func(args ...string) string { return s.in(append([]string{s.web}, args...)...) }
	inPod := func(args ...string) string {
		return s.k3s9p(append([]string{"kubectl", "exec", "one", "--", "/web"}, args...)...)
	}
	bytes := func(address string) string { return fmt.Sprintf("http://%s:8080/bytes?mib=%d", address, mib) }
	download := []string{"download", bytes(gvisor.OutsideAddress)}
	upload := []string{"upload", "http://" + gvisor.OutsideAddress + ":8080/receive", strconv.Itoa(mib)}
	for range transfers {
		for _, transfer := range []struct {
			into *[]float64
			run  func(args ...string) string
			args []string
		}{
			{&s.NodeDownload, onNode, download}, {&s.PodDownload, inPod, download},
			{&s.NodeUpload, onNode, upload}, {&s.PodUpload, inPod, upload},
			{&s.BetweenPods, inPod, []string{"download", bytes(other.Status.PodIP)}},
		} {
			*transfer.into = append(*transfer.into, s.rate(transfer.run(transfer.args...)))
		}
	}
	s.services(inPod, other.Status.PodIP)
	s.t.Logf("MB/s: node %.0f down, %.0f up; pod %.0f down, %.0f up, %.0f from another", s.NodeDownload, s.NodeUpload, s.PodDownload, s.PodUpload, s.BetweenPods)
}

// asking is for how many seconds a kind of request is made, each time.
const asking = "3"

// services asks a pod at its own address and by way of Services, in turn.
func (s *side) services(inPod func(args ...string) string, pod string) {
	s.t.Helper()
	for name, protocol := range map[string]string{"tcp": "TCP", "udp": "UDP"} {
		s.k3s9p("kubectl", "expose", "pod", "two", "--name="+name, "--port=8080", "--protocol="+protocol)
	}
	address := func(service string) string {
		return s.k3s9p("kubectl", "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
	}
	tcp, udp := address("tcp"), address("udp")
	time.Sleep(2 * time.Second) // until they are served
	for range 3 {
		for _, of := range []struct {
			into     *contract.Asked
			tcp, udp string
		}{{&s.Pod, pod, pod}, {&s.Service, tcp, udp}} {
			rate, p99 := s.asked(inPod("ask", "http://"+of.tcp+":8080/", asking))
			of.into.Rate, of.into.P99 = append(of.into.Rate, rate), append(of.into.P99, p99)
			of.into.Download = append(of.into.Download, s.rate(inPod("download", fmt.Sprintf("http://%s:8080/bytes?mib=%d", of.tcp, mib))))
			rate, _ = s.asked(inPod("ask", "udp://"+of.udp+":8080", asking))
			of.into.UDP = append(of.into.UDP, rate)
		}
	}
	s.t.Logf("a pod %+v, a Service %+v", s.Pod, s.Service)
}

// asked reads what test/web prints of what it asked: how often a second, and within how
// many milliseconds it was answered 99 of 100 times.
func (s *side) asked(output string) (rate, p99 float64) {
	s.t.Helper()
	var times, seconds float64
	if _, err := fmt.Sscan(output, &times, &seconds, &p99); err != nil || times == 0 {
		s.t.Fatalf("ask: %v: %s", err, output)
	}
	return times / seconds, p99
}

// rate reads what test/web prints of a transfer, and returns MB/s.
func (s *side) rate(output string) float64 {
	s.t.Helper()
	var bytes int64
	var seconds float64
	_, err := fmt.Sscan(output, &bytes, &seconds)
	if err != nil || bytes != mib<<20 {
		s.t.Fatalf("move %d MiB: %v: %s", mib, err, strings.TrimSpace(output))
	}
	return float64(bytes) / 1e6 / max(seconds, 1e-3)
}
