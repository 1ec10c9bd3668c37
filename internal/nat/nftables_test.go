package nat

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needNftables skips a test where this kernel has no nf_tables.
func needNftables(t *testing.T) {
	t.Helper()
	needRoot(t)
	if err := Supports(Nftables{}, []Rule{{Chain: Prerouting, Target: Return()}}); errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("this kernel has no nf_tables: %v", err)
	}
}

const foreignTable = `table ip foreign {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.42.0.0/16 oifname "eth0" masquerade
	}
}
`

// nft(8) shows what the rules mean, and the table of others as it was.
func TestApplyNftables(t *testing.T) {
	needNftables(t)
	need(t, "nft")
	const want = `table ip k3s9p {
	chain prerouting {
		type nat hook prerouting priority -101; policy accept;
		iifname "cni0" ip daddr 10.42.0.0/16 return
		iifname "cni0" ip daddr 10.43.0.0/16 return
		iifname "cni0" meta l4proto tcp redirect to :15001
		iifname "eth0" tcp dport 8080 dnat to 10.42.0.7:80
		iifname "eth0" udp dport 53 dnat to 10.42.0.8:5353
	}

	chain output {
		type nat hook output priority -101; policy accept;
		ip daddr 192.0.2.2 tcp dport 8080 dnat to 10.42.0.7:80
		oifname "lo" udp dport 5300 redirect to :53
	}

	chain postrouting {
		type nat hook postrouting priority srcnat - 1; policy accept;
		oifname "eth0" ip saddr 10.42.0.0/16 meta l4proto udp snat to 192.0.2.2
		oifname != "cni0" ip saddr 10.42.0.0/16 meta l4proto tcp snat to 192.0.2.2
	}

	chain forward {
		type filter hook forward priority filter - 1; policy accept;
		iifname "cni0" oifname "cni0" drop
	}
}
`
	inOwnNetwork(t, func() error {
		if _, err := run(foreignTable, "nft", "-f", "-"); err != nil {
			return err
		}
		for _, step := range []struct {
			name  string
			rules []Rule
			want  string
		}{
			{"other rules", otherRules[:1], ""},
			{"all rules", append(append([]Rule{}, clusterRules...), otherRules...), foreignTable + want},
			{"again", append(append([]Rule{}, clusterRules...), otherRules...), foreignTable + want},
			{"no rules", nil, foreignTable},
		} {
			if err := (Nftables{}).Apply(step.rules); err != nil {
				return err
			}
			got, err := run("", "nft", "list", "ruleset")
			if err != nil {
				return err
			}
			if step.want != "" && normal(got) != normal(step.want) {
				t.Errorf("%s: got\n%s\nwant\n%s", step.name, got, step.want)
			}
		}
		if err := (Nftables{}).Apply(clusterRules); err != nil {
			return err
		}
		for range 2 {
			if err := (Nftables{}).Remove(); err != nil {
				return err
			}
		}
		got, err := run("", "nft", "list", "ruleset")
		if normal(got) != normal(foreignTable) {
			t.Errorf("after Remove: %s", got)
		}
		return err
	})
}

// normal makes of two ways of nft(8) to write a thing one.
func normal(ruleset string) string {
	ruleset = strings.NewReplacer("priority -101", "priority dstnat - 1", "ip protocol", "meta l4proto").Replace(ruleset)
	return strings.Join(strings.Fields(ruleset), " ")
}

// What somebody has changed by hand is found and repaired; what is as it should be
// keeps its handles, so it was not written again.
func TestVerifyNftables(t *testing.T) {
	needNftables(t)
	need(t, "nft")
	inOwnNetwork(t, func() error {
		if err := (Nftables{}).Apply(clusterRules); err != nil {
			return err
		}
		handles, err := run("", "nft", "-a", "list", "ruleset")
		if err != nil {
			return err
		}
		if err := (Nftables{}).Apply(clusterRules); err != nil {
			return err
		}
		if again, err := run("", "nft", "-a", "list", "ruleset"); err != nil || again != handles {
			t.Errorf("the second Apply has written the table: %v\n%s\nbefore\n%s", err, again, handles)
		}
		for _, command := range []string{
			"flush chain ip k3s9p prerouting",
			"delete table ip k3s9p",
			"add rule ip k3s9p postrouting accept",
			"insert rule ip k3s9p prerouting return",
			"add chain ip k3s9p output { type nat hook output priority -101; }",
		} {
			if _, err := run(command, "nft", "-f", "-"); err != nil {
				return err
			}
			if err := (Nftables{}).Verify(clusterRules); err == nil {
				t.Errorf("Verify finds nothing after: %s", command)
			}
			if err := (Nftables{}).Apply(clusterRules); err != nil {
				return err
			}
		}
		return nil
	})
}
