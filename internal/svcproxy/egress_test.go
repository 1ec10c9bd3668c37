package svcproxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// goingTo is egress for connections of which the kernel says where they were going.
func goingTo(to netip.AddrPort) Destinations {
	policy := Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	return policy.destinations(func(Flow) (netip.AddrPort, error) { return to, nil }, isOwnAddress)
}

func TestEgressTransfersBothWays(t *testing.T) {
	checkNothingLeft(t)
	server := listen(t, serveTransfer(t))
	p := proxyTo(t, goingTo(server), Options{})
	checkTransfer(t, dial(t, p.Addr()))
	await(t, "the end of the connection", func() bool { return p.Counters().Open == 0 })
	want := Counters{Total: 1, ToDestination: transfer, ToClient: transfer + 90}
	if got := p.Counters(); got != want {
		t.Errorf("counters are %+v, not %+v", got, want)
	}
}

// A client that is not redirected, on any of the node's addresses.
func TestEgressRefusesLoops(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		t.Run(address, func(t *testing.T) {
			checkNothingLeft(t)
			p, err := ListenEgress(netip.MustParseAddrPort(address), Policy{Allow: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, Options{
				Dial: func(_ context.Context, _, address string) (net.Conn, error) {
					t.Errorf("dialed %s", address)
					return nil, errors.ErrUnsupported
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closeNow(t, p) })
			checkReset(t, hereDialer, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.Addr().Port()))
			await(t, "the end of the connection", func() bool { return p.Counters().Open == 0 })
			if got, want := p.Counters(), (Counters{Total: 1, Refused: 1}); got != want {
				t.Errorf("counters are %+v, not %+v", got, want)
			}
		})
	}
}

func TestPolicy(t *testing.T) {
	policy := Policy{
		Allow:  []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("10.43.0.1/32")},
		Refuse: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	local := netip.MustParseAddrPort("10.42.0.1:9000")
	own := func(a netip.Addr) (bool, error) { return a.String() == "192.0.2.2", nil }
	for to, want := range map[string]string{
		"198.51.100.1:80":    "",
		"198.51.100.1:9000":  "",
		"192.0.2.2:80":       "",
		"192.0.2.2:9000":     "may be the proxy itself",
		"10.42.0.1:9000":     "the proxy itself",
		"127.0.0.1:80":       "loopback",
		"127.8.8.8:80":       "loopback",
		"169.254.1.1:80":     "link-local",
		"169.254.169.254:80": "",
		"224.0.0.1:80":       "not an address",
		"0.0.0.0:80":         "not an address",
		"10.43.0.10:53":      "10.43.0.0/16 is refused",
		"10.43.0.1:443":      "",
	} {
		t.Run(to, func(t *testing.T) {
			to := netip.MustParseAddrPort(to)
			destinations := policy.destinations(func(Flow) (netip.AddrPort, error) { return to, nil }, own)
			got, err := destinations.of(Flow{Client: netip.MustParseAddrPort("10.42.0.5:40000"), Local: local})
			switch {
			case want == "" && (err != nil || len(got) != 1 || got[0] != to):
				t.Errorf("got %v and %v", got, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("got %v and %v, not an error with %q", got, err, want)
			}
		})
	}
}

func TestRefusedDestinationIsReset(t *testing.T) {
	checkNothingLeft(t)
	p := proxyTo(t, goingTo(free(t)), Options{})
	checkReset(t, hereDialer, p.Addr())
	await(t, "the failure to be counted", func() bool { return p.Counters().Failed == 1 })
}

func TestListenEgressWantsIPv4(t *testing.T) {
	if _, err := ListenEgress(netip.MustParseAddrPort("[::1]:0"), Policy{}, Options{}); err == nil || !strings.Contains(err.Error(), "IPv4") {
		t.Errorf("got %v", err)
	}
}
