package nat

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Nftables is the back end for nf_tables: the table "ip k3s9p", which is made and
// taken away in one transaction.
//
// Its chains come before those that others have at the usual priorities, dstnat and
// srcnat. What they leave alone goes on to the chains of others.
type Nftables struct{}

func (Nftables) String() string { return "nftables" }

// priorities are just before NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC and NF_IP_PRI_FILTER
// (include/uapi/linux/netfilter_ipv4.h): the first chain that decides about a
// connection has decided.
var priorities = map[Chain]nftables.ChainPriority{
	Prerouting:  *nftables.ChainPriorityNATDest - 1,
	Output:      *nftables.ChainPriorityNATDest - 1,
	Postrouting: *nftables.ChainPriorityNATSource - 1,
	Forward:     *nftables.ChainPriorityFilter - 1,
}

var nftablesHooks = map[Chain]*nftables.ChainHook{
	Prerouting:  nftables.ChainHookPrerouting,
	Output:      nftables.ChainHookOutput,
	Postrouting: nftables.ChainHookPostrouting,
	Forward:     nftables.ChainHookForward,
}

func ownTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "k3s9p"}
}

func ownChain(c Chain) *nftables.Chain {
	kind := nftables.ChainTypeNAT
	if c == Forward {
		kind = nftables.ChainTypeFilter
	}
	return &nftables.Chain{Name: strings.ToLower(c.String()), Table: ownTable(), Type: kind,
		Hooknum: nftablesHooks[c], Priority: nftables.ChainPriorityRef(priorities[c])}
}

// Apply implements Backend.
func (b Nftables) Apply(rules []Rule) error {
	sorted, err := byChain(rules)
	if err != nil {
		return err
	}
	if err := b.apply(sorted); err != nil {
		return fmt.Errorf("nat: apply rules with %s: %w", b, err)
	}
	return nil
}

func (b Nftables) apply(sorted map[Chain][]Rule) error {
	if b.verify(sorted) == nil {
		return nil
	}
	conn, err := b.empty()
	if err != nil {
		return err
	}
	if len(sorted) > 0 {
		conn.AddTable(ownTable())
	}
	for _, c := range slices.Sorted(maps.Keys(sorted)) {
		chain := conn.AddChain(ownChain(c))
		for _, rule := range sorted[c] {
			conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: expressions(rule)})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table ip k3s9p: %w", err)
	}
	return b.verify(sorted)
}

// empty begins a transaction that takes our table away: a table that may be there
// is deleted by adding it first.
func (Nftables) empty() (*nftables.Conn, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("talk to nf_tables: %w", err)
	}
	conn.AddTable(ownTable())
	conn.DelTable(ownTable())
	return conn, nil
}

// Remove implements Backend.
func (b Nftables) Remove() error {
	conn, err := b.empty()
	if err == nil {
		err = conn.Flush()
	}
	// No netlink protocol for netfilter, or no nf_tables in it.
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nat: remove rules with %s: %w", b, err)
	}
	return nil
}

// Verify implements Backend.
func (b Nftables) Verify(rules []Rule) error {
	sorted, err := byChain(rules)
	if err == nil {
		err = b.verify(sorted)
	}
	if err != nil {
		return fmt.Errorf("nat: verify rules with %s: %w", b, err)
	}
	return nil
}

func (Nftables) verify(sorted map[Chain][]Rule) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("talk to nf_tables: %w", err)
	}
	there, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("list the chains of nf_tables: %w", err)
	}
	there = slices.DeleteFunc(there, func(c *nftables.Chain) bool { return c.Table.Name != ownTable().Name })
	if len(there) != len(sorted) {
		return fmt.Errorf("table ip k3s9p has %d chains instead of %d", len(there), len(sorted))
	}
	for _, c := range slices.Sorted(maps.Keys(sorted)) {
		want := ownChain(c)
		i := slices.IndexFunc(there, func(got *nftables.Chain) bool { return got.Name == want.Name })
		if i < 0 {
			return fmt.Errorf("there is no chain %s in table ip k3s9p", want.Name)
		}
		if got := there[i]; got.Type != want.Type || got.Hooknum == nil || *got.Hooknum != *want.Hooknum || got.Priority == nil || *got.Priority != *want.Priority {
			return fmt.Errorf("chain %s of table ip k3s9p is not at its hook", want.Name)
		}
		got, err := conn.GetRules(want.Table, want)
		if err != nil {
			return fmt.Errorf("read chain %s of table ip k3s9p: %w", want.Name, err)
		}
		for i, rule := range sorted[c] {
			if i >= len(got) || !reflect.DeepEqual(got[i].Exprs, expressions(rule)) {
				return fmt.Errorf("chain %s of table ip k3s9p has not, or not as rule %d: %s", want.Name, i+1, rule)
			}
		}
		if len(got) != len(sorted[c]) {
			return fmt.Errorf("chain %s of table ip k3s9p has %d rules instead of %d", want.Name, len(got), len(sorted[c]))
		}
	}
	return nil
}

// Offsets and sizes in bytes in the headers of IPv4, TCP and UDP.
const (
	headerSource          = 12
	headerDestination     = 16
	headerDestinationPort = 2
)

// expressions are a rule as nf_tables shows it again.
func expressions(r Rule) []expr.Any {
	var all []expr.Any
	metadata := func(key expr.MetaKey, op expr.CmpOp, data []byte) {
		all = append(all, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data})
	}
	if r.In != "" {
		metadata(expr.MetaKeyIIFNAME, expr.CmpOpEq, interfaceName(r.In))
	}
	if r.Out != "" {
		metadata(expr.MetaKeyOIFNAME, expr.CmpOpEq, interfaceName(r.Out))
	}
	if r.NotOut != "" {
		metadata(expr.MetaKeyOIFNAME, expr.CmpOpNeq, interfaceName(r.NotOut))
	}
	all = append(all, prefixExpressions(headerSource, r.Source)...)
	all = append(all, prefixExpressions(headerDestination, r.Destination)...)
	if r.Protocol != AnyProtocol {
		metadata(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{byte(r.Protocol)})
	}
	if r.DestinationPort != 0 {
		all = append(all,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: headerDestinationPort, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(r.DestinationPort)})
	}
	return append(all, targetExpressions(r.Target)...)
}

// interfaceName is compared with all bytes of the field in the kernel.
func interfaceName(name string) []byte {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}

func prefixExpressions(offset uint32, prefix netip.Prefix) []expr.Any {
	if !prefix.IsValid() {
		return nil
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(prefix.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: prefix.Masked().Addr().AsSlice()},
	}
}

// targetExpressions state the ends of ranges and the flags that the kernel would add.
func targetExpressions(target Target) []expr.Any {
	address := &expr.Immediate{Register: 1, Data: target.address.Addr().AsSlice()}
	port := func(register uint32) *expr.Immediate {
		return &expr.Immediate{Register: register, Data: binaryutil.BigEndian.PutUint16(target.address.Port())}
	}
	switch target.kind {
	case snat:
		return []expr.Any{address, &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegAddrMax: 1}}
	case dnat:
		return []expr.Any{address, port(2), &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
			RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: 2, RegProtoMax: 2, Specified: true}}
	case redirect:
		return []expr.Any{port(1), &expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED}}
	case masquerade:
		return []expr.Any{&expr.Masq{}}
	case drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	default:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	}
}
