package svcproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenUDP is a server on loopback that answers each datagram with the same one.
func listenUDP(t testing.TB, address netip.AddrPort) netip.AddrPort {
	t.Helper()
	return answerUDP(t, address, "")
}

// answerUDP is the same with something before each answer.
func answerUDP(t testing.TB, address netip.AddrPort, prefix string) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(append([]byte(prefix), buffer[:n]...), from)
		}
	}()
	return addrPort(conn.LocalAddr())
}

func proxyUDPTo(t testing.TB, to Destinations, options Options) *UDP {
	t.Helper()
	p, err := ListenUDP(loopback, to, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, p) })
	return p
}

func dialUDP(t testing.TB, to netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := net.Dial("udp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(limit))
	return conn
}

// exchange sends a datagram and returns the next one that comes.
func exchange(t testing.TB, conn net.Conn, datagram string) string {
	t.Helper()
	if _, err := io.WriteString(conn, datagram); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64<<10)
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

func TestUDPClientsAreKeptApart(t *testing.T) {
	checkNothingLeft(t)
	p := proxyUDPTo(t, To(listenUDP(t, loopback)), Options{})
	clients := []net.Conn{dialUDP(t, p.Addr()), dialUDP(t, p.Addr())}
	var bytes uint64
	for _, datagram := range []string{"question", "", strings.Repeat("x", 65507)} { // the most that IPv4 takes
		for i, client := range clients {
			datagram := datagram[:max(len(datagram)-i, 0)]
			if got := exchange(t, client, datagram); got != datagram {
				t.Errorf("client %d got %d bytes back, not %d", i, len(got), len(datagram))
			}
			bytes += uint64(len(datagram))
		}
	}
	want := Counters{Open: 2, Total: 2, ToDestination: bytes, ToClient: bytes}
	await(t, "all to be counted", func() bool { return p.Counters() == want })
}

func TestSilentUDPClientIsForgotten(t *testing.T) {
	checkNothingLeft(t)
	const timeout = 100 * time.Millisecond
	p := proxyUDPTo(t, To(listenUDP(t, loopback)), Options{UDPIdleTimeout: timeout})
	client := dialUDP(t, p.Addr())
	allowed := uint64(1)
	for start, asked := time.Now(), time.Now(); time.Since(start) < 3*timeout; {
		before := asked
		asked = time.Now()
		exchange(t, client, "question")
		if time.Since(before) >= timeout { // on a busy machine the test itself may be silent
			allowed++
		}
	}
	came := p.Counters().Total
	if came > allowed {
		t.Errorf("a client that is not silent was forgotten %d times", came-allowed)
	}
	await(t, "the end of the client's socket", func() bool { return p.Counters().Open == 0 })
	if got := exchange(t, client, "again"); got != "again" {
		t.Errorf("got %q", got)
	}
	if got := p.Counters().Total; got != came+1 {
		t.Errorf("%d clients came, not %d", got, came+1)
	}
}

func TestLimitOfUDPClients(t *testing.T) {
	checkNothingLeft(t)
	var log log
	p := proxyUDPTo(t, To(listenUDP(t, loopback)), Options{MaxFlows: 2, Log: log.logger()})
	clients := []net.Conn{dialUDP(t, p.Addr()), dialUDP(t, p.Addr()), dialUDP(t, p.Addr())}
	for _, i := range []int{0, 1, 0, 2, 0, 2, 1} { // 2 ends 1, in the end 1 ends 0
		if got := exchange(t, clients[i], "question"); got != "question" {
			t.Errorf("client %d got %q", i, got)
		}
	}
	if got := p.Counters().Total; got != 4 {
		t.Errorf("%d clients came, not 4: not the most silent one was forgotten", got)
	}
	await(t, "the end of the others", func() bool { return p.Counters().Open == 2 })
	if got := log.count("no room"); got != 1 {
		t.Errorf("it was logged %d times in a minute", got)
	}
}

// A destination that starts after its clients is found by the same ones.
func TestUDPDestinationComesLater(t *testing.T) {
	checkNothingLeft(t)
	address := free(t)
	p := proxyUDPTo(t, To(address), Options{})
	client := dialUDP(t, p.Addr())
	for range 5 { // each is answered by ICMP: port unreachable
		io.WriteString(client, "lost")
	}
	await(t, "the datagrams to be sent on", func() bool { return p.Counters().ToDestination >= 20 })
	listenUDP(t, address)
	if got := exchange(t, client, "word"); got != "word" {
		t.Errorf("got %q", got)
	}
	if got := p.Counters(); got.Total != 1 || got.Open != 1 {
		t.Errorf("the client was forgotten: %+v", got)
	}
}

// refusedOnce tells the first write what became of one before.
type refusedOnce struct {
	net.Conn
	told bool
}

func (c *refusedOnce) Write(b []byte) (int, error) {
	if !c.told {
		c.told = true
		return 0, unix.ECONNREFUSED
	}
	return c.Conn.Write(b)
}

func TestUDPErrorOfTheDatagramBefore(t *testing.T) {
	checkNothingLeft(t)
	p := proxyUDPTo(t, To(listenUDP(t, loopback)), Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := hereDialer(ctx, network, address)
		return &refusedOnce{Conn: conn}, err
	}})
	if got := exchange(t, dialUDP(t, p.Addr()), "word"); got != "word" {
		t.Errorf("got %q", got)
	}
}

func TestUDPWithoutDestination(t *testing.T) {
	checkNothingLeft(t)
	var log log
	p := proxyUDPTo(t, func(Flow) ([]netip.AddrPort, error) { return nil, errors.New("no endpoints") }, Options{Log: log.logger()})
	client := dialUDP(t, p.Addr())
	for range 3 {
		io.WriteString(client, "x")
	}
	want := Counters{Total: 3, Refused: 3}
	await(t, "the refusals", func() bool { return p.Counters() == want })
	if got := log.count("no endpoints"); got != 1 {
		t.Errorf("it was logged %d times in a minute", got)
	}
}

func TestListenUDPWantsOneAddress(t *testing.T) {
	_, err := ListenUDP(netip.MustParseAddrPort("0.0.0.0:0"), To(loopback), Options{})
	if err == nil || !strings.Contains(err.Error(), "make a listener for each") {
		t.Errorf("got %v", err)
	}
}
