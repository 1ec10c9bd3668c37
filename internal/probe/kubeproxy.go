package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// What kube-proxy can be told to make its rules with (--proxy-mode).
const (
	KubeProxyNftables = "nftables"
	KubeProxyIptables = "iptables"
)

// KubeProxy gives the kernel rules as kube-proxy writes them in one of its modes, by the
// program that it calls, in network namespaces of its own; connects to the Service that
// they make; and to another port of it, because gVisor's nf_tables takes a match of
// ports and does not look at them.
func KubeProxy(ctx context.Context, mode string) error { return inNetwork(ctx, "kube-proxy", mode) }

// writers are the programs of the modes, with their arguments.
var writers = map[string][]string{
	KubeProxyNftables: {"nft", "-f", "-"},
	KubeProxyIptables: {"iptables-restore", "--noflush"},
}

// What the probe's Service has: an address that is nowhere, a port, and one endpoint on
// the node.
var (
	serviceAddress = netip.AddrPortFrom(farther, anyPort)
	otherPort      = netip.AddrPortFrom(farther, anyPort+1)
	endpoint       = netip.AddrPortFrom(pod, proxyPort)
)

// rulesOf are what kube-proxy cannot do without, in the words of nft(8) and
// iptables-restore(8) (k8s.io/kubernetes pkg/proxy/nftables and pkg/proxy/iptables). The
// latter are more than 32 KB, as those of some hundred Services are.
var rulesOf = map[string]string{
	KubeProxyNftables: `
table ip k3s9p {
	comment "a probe"
	set addresses { type ipv4_addr; elements = { <service> } }
	map services {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { <service> . tcp . <port> : goto balance }
	}
	chain prerouting {
		type nat hook prerouting priority dstnat
		jump dispatch
	}
	chain output {
		type nat hook output priority -100
		jump dispatch
	}
	chain filter {
		type filter hook prerouting priority -110
		ct state new ip daddr @addresses accept
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		meta mark & 0x4000 == 0 return
		meta mark set meta mark ^ 0x4000
		masquerade fully-random
	}
	chain dispatch {
		ip daddr . meta l4proto . th dport vmap @services
		fib daddr type local meta l4proto tcp return
	}
	chain balance {
		ip saddr != <service> meta mark set meta mark | 0x4000
		numgen random mod 1 vmap { 0 : goto endpoint }
	}
	chain endpoint {
		meta l4proto tcp dnat to <endpoint>
	}
}
`,
	KubeProxyIptables: `*filter
:K3S9P-FORWARD - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "a probe" -j K3S9P-FORWARD
-A K3S9P-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A K3S9P-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:K3S9P-SERVICES - [0:0]
:K3S9P-BALANCE - [0:0]
:K3S9P-ENDPOINT - [0:0]
:K3S9P-MARK - [0:0]
:K3S9P-POST - [0:0]
-A PREROUTING -m comment --comment "a probe" -j K3S9P-SERVICES
-A OUTPUT -m comment --comment "a probe" -j K3S9P-SERVICES
-A POSTROUTING -m comment --comment "a probe" -j K3S9P-POST
<others>-A K3S9P-SERVICES -d <service>/32 -p tcp -m comment --comment "a probe" -m tcp --dport <port> -j K3S9P-BALANCE
-A K3S9P-SERVICES -m addrtype --dst-type LOCAL -j RETURN
-A K3S9P-BALANCE -m comment --comment "a probe" -j K3S9P-MARK
-A K3S9P-BALANCE -m comment --comment "a probe" -m statistic --mode random --probability 1.0 -j K3S9P-ENDPOINT
-A K3S9P-ENDPOINT -p tcp -m comment --comment "a probe" -m tcp -j DNAT --to-destination <endpoint>
-A K3S9P-MARK -j MARK --or-mark 0x4000
-A K3S9P-POST -m mark ! --mark 0x4000/0x4000 -j RETURN
-A K3S9P-POST -j MARK --xor-mark 0x4000
-A K3S9P-POST -m comment --comment "a probe" -j MASQUERADE
COMMIT
`,
}

// manyServices make more rules than 32 KB.
const manyServices = 250

func kubeProxyPackets(mode string) error {
	writer := writers[mode]
	if writer == nil {
		return fmt.Errorf("%w: kube-proxy has no mode %q", ErrUnclear, mode)
	}
	if _, err := exec.LookPath(writer[0]); err != nil {
		return fmt.Errorf("kube-proxy needs %s for its mode %s: %w", writer[0], mode, err)
	}
	ownLock()
	var many strings.Builder
	address := netip.MustParseAddr("198.18.0.1") // of those for benchmarks (RFC 2544)
	for range manyServices {
		fmt.Fprintf(&many, "-A K3S9P-SERVICES -d %s/32 -p tcp -m comment --comment \"one of many Services\" -m tcp --dport 80 -j K3S9P-BALANCE\n", address)
		address = address.Next()
	}
	rules := strings.NewReplacer("<service>", serviceAddress.Addr().String(), "<port>", strconv.Itoa(int(serviceAddress.Port())),
		"<endpoint>", endpoint.String(), "<others>", many.String()).Replace(rulesOf[mode])
	write := func() error {
		cmd := exec.Command(writer[0], writer[1:]...)
		cmd.Stdin = strings.NewReader(rules)
		if output, err := cmd.CombinedOutput(); err != nil {
			first, _, _ := bytes.Cut(bytes.TrimSpace(output), []byte("\n"))
			return fmt.Errorf("%s does not take kube-proxy's rules: %w: %s", writer[0], err, first)
		}
		return nil
	}
	err := betweenNetworks(func(far within) error {
		if err := write(); err != nil {
			return err
		}
		return arrivesAtEndpoint(far)
	})
	if errors.Is(err, ErrUnclear) { // no packets can be sent between two network namespaces
		return errors.Join(write(), err)
	}
	return err
}

// arrivesAtEndpoint connects to the Service, and to a port that it does not have.
func arrivesAtEndpoint(far within) error {
	server, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(endpoint))
	if err != nil {
		return unclearly("listen as an endpoint", err)
	}
	defer server.Close()
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "k3s9p")
			conn.Close()
		}
	}()
	ask := func(address netip.AddrPort, within time.Duration) error {
		var conn net.Conn
		err := far(func() (err error) {
			conn, err = net.DialTimeout("tcp4", address.String(), within)
			return err
		})
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(within))
		_, err = io.ReadFull(conn, make([]byte, 5))
		return err
	}
	start := time.Now()
	if err := ask(serviceAddress, answerTime); err != nil {
		return fmt.Errorf("the rules were taken, and a connection to a Service does not get to its endpoint: %w", err)
	}
	// Nobody answers at the other port; what would, needs no longer than the Service.
	if ask(otherPort, min(max(20*time.Since(start), 50*time.Millisecond), 300*time.Millisecond)) == nil {
		return errors.New("the rules were taken, and a connection to another port than the Service's gets to its endpoint")
	}
	return nil
}
