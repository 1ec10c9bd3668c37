package svcproxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

func parse[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := yaml.UnmarshalStrict([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// texts are the ports in short.
func texts(ports []Port) []string {
	var all []string
	for _, p := range ports {
		text := p.Name + " " + string(p.Protocol)
		for _, a := range p.Addresses {
			text += " " + a.String()
		}
		text += " " + netip.AddrPortFrom(netip.IPv4Unspecified(), p.Port).String()[len("0.0.0.0"):] + " →"
		for _, e := range p.Endpoints {
			text += " " + e.String()
		}
		if p.Affinity > 0 {
			text += " for " + p.Affinity.String()
		}
		all = append(all, text)
	}
	return all
}

const someServices = `
- metadata: {namespace: default, name: web}
  spec: {clusterIP: 10.43.0.20, externalIPs: [192.0.2.9], ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]}
- metadata: {namespace: default, name: sticky}
  spec: {clusterIP: 10.43.0.21, sessionAffinity: ClientIP, ports: [{port: 80}]}
- metadata: {namespace: default, name: headless}
  spec: {clusterIP: None, ports: [{port: 80}]}
- metadata: {namespace: default, name: elsewhere}
  spec: {type: ExternalName, externalName: example.com}
- metadata: {namespace: other, name: web}
  spec: {clusterIP: 10.43.0.22, ports: [{name: http, port: 80}]}
- metadata: {namespace: default, name: ending}
  spec: {clusterIP: 10.43.0.23, ports: [{port: 80}]}
- metadata: {namespace: default, name: near}
  spec: {clusterIP: 10.43.0.24, internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30081}]}
- metadata: {namespace: default, name: kept}
  spec: {clusterIP: 10.43.0.25, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30082}]}
`

const someSlices = `
- metadata: {namespace: default, name: web-1, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 5353, protocol: UDP}]
  endpoints:
  - {addresses: [10.42.0.3], conditions: {ready: true}}
  - {addresses: [10.42.0.2]}
  - {addresses: [10.42.0.4], conditions: {ready: false}}
  - {addresses: [10.42.0.5], conditions: {ready: false, serving: true, terminating: true}}
- metadata: {namespace: default, name: web-6, labels: {kubernetes.io/service-name: web}}
  addressType: IPv6
  ports: [{name: http, port: 8080}]
  endpoints: [{addresses: ["fd00::2"]}]
- metadata: {namespace: default, name: sticky-1, labels: {kubernetes.io/service-name: sticky}}
  addressType: IPv4
  ports: [{name: "", port: 8080}]
  endpoints: [{addresses: [10.42.0.2]}]
- metadata: {namespace: default, name: ending-1, labels: {kubernetes.io/service-name: ending}}
  addressType: IPv4
  ports: [{port: 8080}]
  endpoints:
  - {addresses: [10.42.0.6], conditions: {ready: false, serving: true, terminating: true}}
  - {addresses: [10.42.0.7], conditions: {ready: false, serving: false, terminating: true}}
- metadata: {namespace: default, name: near-1, labels: {kubernetes.io/service-name: near}}
  addressType: IPv4
  ports: &port [{port: 8080}]
  endpoints: &both [{addresses: [10.42.0.8], nodeName: here}, {addresses: [10.42.1.8], nodeName: there}]
- metadata: {namespace: default, name: kept-1, labels: {kubernetes.io/service-name: kept}}
  addressType: IPv4
  ports: *port
  endpoints: *both
`

func TestPortsOfServices(t *testing.T) {
	got := texts(PortsOf(parse[[]corev1.Service](t, someServices), parse[[]discoveryv1.EndpointSlice](t, someSlices), "here"))
	want := []string{
		"default/web:http TCP 10.43.0.20 :80 → 10.42.0.2:8080 10.42.0.3:8080",
		"default/web:http TCP 192.0.2.9 :80 → 10.42.0.2:8080 10.42.0.3:8080",
		"default/web:http TCP :30080 → 10.42.0.2:8080 10.42.0.3:8080",
		"default/web:dns UDP 10.43.0.20 :53 → 10.42.0.2:5353 10.42.0.3:5353",
		"default/web:dns UDP 192.0.2.9 :53 → 10.42.0.2:5353 10.42.0.3:5353",
		"default/sticky: TCP 10.43.0.21 :80 → 10.42.0.2:8080 for 3h0m0s",
		"other/web:http TCP 10.43.0.22 :80 →",
		"default/ending: TCP 10.43.0.23 :80 → 10.42.0.6:8080",
		"default/near: TCP 10.43.0.24 :80 → 10.42.0.8:8080",
		"default/near: TCP :30081 → 10.42.0.8:8080 10.42.1.8:8080",
		"default/kept: TCP 10.43.0.25 :80 → 10.42.0.8:8080 10.42.1.8:8080",
		"default/kept: TCP :30082 → 10.42.0.8:8080",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHostPorts(t *testing.T) {
	pods := parse[[]corev1.Pod](t, `
- metadata: {namespace: default, name: a}
  spec: {containers: [{name: c, ports: [{containerPort: 8080, hostPort: 80, name: http}, {containerPort: 9090}, {containerPort: 53, hostPort: 53, hostIP: 127.0.0.1, protocol: UDP}]}]}
  status: {podIP: 10.42.0.2, phase: Running}
- metadata: {namespace: default, name: host}
  spec: {hostNetwork: true, containers: [{name: c, ports: [{containerPort: 8081, hostPort: 8081}]}]}
  status: {podIP: 10.42.0.1, phase: Running}
- metadata: {namespace: default, name: ended}
  spec: {containers: [{name: c, ports: [{containerPort: 8080, hostPort: 81}]}]}
  status: {podIP: 10.42.0.3, phase: Succeeded}
- metadata: {namespace: default, name: pending}
  spec: {containers: [{name: c, ports: [{containerPort: 8080, hostPort: 82}]}]}
`)
	want := []string{"default/a:http TCP :80 → 10.42.0.2:8080", "default/a: UDP 127.0.0.1 :53 → 10.42.0.2:53"}
	if diff := cmp.Diff(want, texts(HostPortsOf(pods))); diff != "" {
		t.Error(diff)
	}
}

// named is a TCP server on loopback that says its name.
func named(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			conn.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

func hear(t *testing.T, address netip.AddrPort) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address.String(), 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	data, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// free is an address on loopback where nobody listens. It is one that no other test is
// given a port at before this one takes it.
func free(t testing.TB) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.83.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

func TestTable(t *testing.T) {
	table := NewTable(nil, Options{})
	defer table.Close(context.Background())
	a, b, dead, at := named(t, "a"), named(t, "b"), free(t), free(t)
	port := Port{Name: "default/web:", Protocol: corev1.ProtocolTCP, Addresses: []netip.Addr{at.Addr()}, Port: at.Port(), Endpoints: []netip.AddrPort{a, b}}
	apply := func(ports ...Port) {
		t.Helper()
		if failures := table.Apply(ports); failures != nil {
			t.Fatal(failures)
		}
	}
	apply(port)
	heard := []string{hear(t, at), hear(t, at), hear(t, at), hear(t, at)}
	slices.Sort(heard)
	if got := strings.Join(heard, ""); got != "aabb" {
		t.Errorf("two endpoints were asked as %q", got)
	}
	port.Endpoints = []netip.AddrPort{dead, b}
	apply(port)
	for range 3 {
		if got := hear(t, at); got != "b" {
			t.Errorf("with one endpoint that refuses the answer is %q", got)
		}
	}
	port.Endpoints, port.Affinity = []netip.AddrPort{a, b}, time.Minute
	apply(port)
	first := hear(t, at)
	for range 3 {
		if got := hear(t, at); got != first {
			t.Errorf("a client with affinity got %q after %q", got, first)
		}
	}
	port.Endpoints = nil
	apply(port)
	if got := hear(t, at); !strings.Contains(got, "reset") {
		t.Errorf("without endpoints the answer is %q", got)
	}
	apply()
	got := ""
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(got, "refused") && time.Now().Before(deadline); {
		got = hear(t, at)
	}
	if !strings.Contains(got, "refused") || table.Len() != 0 {
		t.Errorf("a port that is gone answers %q, and %d listeners are left", got, table.Len())
	}
}

// A port of the node, at all of its addresses, and that of a Service may be the same.
func TestPortAtAllAddresses(t *testing.T) {
	a, b, at := named(t, "a"), named(t, "b"), free(t)
	ofService := Port{Name: "default/web:", Protocol: corev1.ProtocolTCP, Addresses: []netip.Addr{at.Addr()}, Port: at.Port(), Endpoints: []netip.AddrPort{a}}
	ofNode := Port{Name: "the hostPort of default/proxy", Protocol: corev1.ProtocolTCP, Port: at.Port(), Endpoints: []netip.AddrPort{b}}
	for _, ports := range [][]Port{{ofService, ofNode}, {ofNode, ofService}} {
		table := NewTable(func() []netip.Addr { return []netip.Addr{loopback.Addr()} }, Options{})
		for i := range ports { // one after the other, too
			if failures := table.Apply(ports[:i+1]); failures != nil {
				t.Error(failures)
			}
		}
		for want, at := range map[string]netip.AddrPort{"a": at, "b": netip.AddrPortFrom(loopback.Addr(), at.Port())} {
			if got := hear(t, at); got != want {
				t.Errorf("at %v answers %q, not %q", at, got, want)
			}
		}
		if err := table.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A client of UDP that goes on from the same port leaves an endpoint that is gone, and
// no other.
func TestUDPClientLeavesEndpoint(t *testing.T) {
	table := NewTable(nil, Options{})
	defer table.Close(context.Background())
	first, second, at := answerUDP(t, loopback, "first "), answerUDP(t, loopback, "second "), free(t)
	port := Port{Name: "default/dns:", Protocol: corev1.ProtocolUDP, Addresses: []netip.Addr{at.Addr()}, Port: at.Port()}
	var client net.Conn
	for _, step := range []struct {
		endpoints []netip.AddrPort
		want      string
	}{{[]netip.AddrPort{first}, "first x"}, {[]netip.AddrPort{second, first}, "first x"}, {[]netip.AddrPort{second}, "second x"}} {
		port.Endpoints = step.endpoints
		if failures := table.Apply([]Port{port}); failures != nil {
			t.Fatal(failures)
		}
		if client == nil {
			client = dialUDP(t, at)
		}
		if got := exchange(t, client, "x"); got != step.want {
			t.Errorf("with the endpoints %v it hears %q, want %q", step.endpoints, got, step.want)
		}
	}
}

func TestTwoPortsAtOnePlaceAreNamed(t *testing.T) {
	table := NewTable(nil, Options{})
	defer table.Close(context.Background())
	at, a := free(t), named(t, "a")
	port := Port{Name: "default/first:", Protocol: corev1.ProtocolTCP, Addresses: []netip.Addr{at.Addr()}, Port: at.Port(), Endpoints: []netip.AddrPort{a}}
	other := port
	other.Name = "default/second:"
	other.Owner.Name = "second"
	failures := table.Apply([]Port{port, other})
	if len(failures) != 1 || failures[0].Port.Owner.Name != "second" || failures[0].At != at || !strings.Contains(failures[0].Error(), "it is that of default/first:") {
		t.Errorf("the failures are %v", failures)
	}
	if got := hear(t, at); got != "a" {
		t.Errorf("the first one answers %q", got)
	}
}

func TestAffinityRemembersSoManyClients(t *testing.T) {
	e := &endpoints{list: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80")}, affinity: time.Hour}
	address := netip.MustParseAddr("10.0.0.0")
	for range 2 * maxClients {
		address = address.Next()
		if _, err := e.choose(Flow{Client: netip.AddrPortFrom(address, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(e.clients) > maxClients {
		t.Errorf("%d clients are remembered", len(e.clients))
	}
}
