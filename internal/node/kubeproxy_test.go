package node

import (
	"os"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
)

// Rules of another kube-proxy are left alone, and those of a node that was killed are not
// taken for such.
func TestRulesOfAnotherKubeProxy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	own, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for name, add := range map[string]func(*nftables.Conn){
		"nftables": func(c *nftables.Conn) {
			c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: kubeProxy})
		},
		"iptables": func(c *nftables.Conn) {
			c.AddChain(&nftables.Chain{Name: "KUBE-SERVICES", Table: c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})})
		},
	} {
		p := Paths{t.TempDir()}
		if othersServices(p) {
			t.Fatal("there are rules of a kube-proxy before there are any")
		}
		conn, err := nftables.New(nftables.WithNetNSFd(int(own)))
		if err != nil {
			t.Fatal(err)
		}
		add(conn)
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		if !othersServices(p) {
			t.Errorf("%s: rules of another kube-proxy are not seen", name)
		}
		if err := p.journal().Record(kubeProxyRecord, kubeProxyChange{Mode: name}); err != nil {
			t.Fatal(err)
		}
		if othersServices(p) {
			t.Errorf("%s: the node's own rules are taken for those of others", name)
		}
		conn.FlushRuleset()
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
}
