package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Offsets and sizes in bytes of struct ipt_entry (include/uapi/linux/netfilter_ipv4/
// ip_tables.h), which begins with struct ipt_ip.
const (
	ipSource           = 0
	ipDestination      = 4
	ipSourceMask       = 8
	ipDestinationMask  = 12
	ipIn               = 16
	ipOut              = 32
	ipInMask           = 48
	ipOutMask          = 64
	ipProtocol         = 80
	ipInverse          = 83
	entryCache         = 84 // nfcache: what the kernel makes of the entry
	entryTargetOffset  = 88
	entryNextOffset    = 90
	entryComeFrom      = 92 // the hooks that lead here: the kernel's note
	entryPacketCounter = 96
	entryByteCounter   = 104
	entrySize          = 112

	inverseOut = 0x02 // IPT_INV_VIA_OUT
)

// struct xt_entry_match and xt_entry_target (include/uapi/linux/netfilter/
// x_tables.h) have the same header: size, name, revision. All sizes are multiples
// of 8 (XT_ALIGN).
const (
	extensionName     = 2
	extensionRevision = 31
	extensionSize     = 32 // of the header

	extensionNameLength = 29 // XT_EXTENSION_MAXNAMELEN
	errorNameLength     = 30 // XT_FUNCTION_MAXNAMELEN

	standardTarget = ""      // XT_STANDARD_TARGET: a verdict, or the offset of an entry to jump to
	errorTarget    = "ERROR" // XT_ERROR_TARGET: the head of a user chain, or the end of the table
)

// Verdicts of the standard target are negative, and other values are offsets.
const (
	verdictReturn = -5 // XT_RETURN of x_tables.h: -NF_REPEAT - 1
	verdictDrop   = -1 // -NF_DROP - 1
)

// Flags of struct nf_nat_ipv4_range (include/uapi/linux/netfilter/nf_nat.h).
const (
	rangeMapIPs            = 1 << 0
	rangeProtocolSpecified = 1 << 1
)

// entry is a struct ipt_entry with its matches and its target. A user chain begins
// with an entry that has its name in an error target, and ends with a verdict for
// all packets.
type entry struct {
	data []byte
	// to is where a standard target with a positive verdict leads. The offset in data
	// is set when the table is encoded.
	to *entry
	// read is the entry's position in the table that was read, or -1.
	read int
}

// decodeEntry takes the first entry of a table's.
func decodeEntry(table []byte) (*entry, error) {
	if len(table) < entrySize {
		return nil, fmt.Errorf("%d bytes are no entry", len(table))
	}
	target, next := int(binary.NativeEndian.Uint16(table[entryTargetOffset:])), int(binary.NativeEndian.Uint16(table[entryNextOffset:]))
	if target < entrySize || next < target+extensionSize || next > len(table) {
		return nil, fmt.Errorf("an entry of %d bytes with its target at %d, where %d bytes are left", next, target, len(table))
	}
	e := &entry{data: bytes.Clone(table[:next])}
	if name := e.targetName(); (name == standardTarget && len(e.target()) < extensionSize+4) || (name == errorTarget && len(e.target()) < extensionSize+errorNameLength) {
		return nil, fmt.Errorf("a target %q of %d bytes", name, len(e.target()))
	}
	return e, nil
}

func (e *entry) target() []byte {
	return e.data[binary.NativeEndian.Uint16(e.data[entryTargetOffset:]):]
}

func (e *entry) targetName() string { return text(e.target()[extensionName:][:extensionNameLength]) }

// verdict is that of a standard target.
func (e *entry) verdict() (int32, bool) {
	if e.targetName() != standardTarget {
		return 0, false
	}
	return int32(binary.NativeEndian.Uint32(e.target()[extensionSize:])), true
}

func (e *entry) setVerdict(verdict int32) {
	binary.NativeEndian.PutUint32(e.target()[extensionSize:], uint32(verdict))
}

// chainName is the name of the user chain that the entry is the head of, or ERROR
// at the end of the table.
func (e *entry) chainName() (string, bool) {
	if e.targetName() != errorTarget {
		return "", false
	}
	return text(e.target()[extensionSize:][:errorNameLength]), true
}

// same reports whether two entries match the same packets and have the same target,
// except for where they jump.
func (e *entry) same(other *entry) bool {
	return bytes.Equal(e.bare().data, other.bare().data)
}

// bare is a copy without what the kernel keeps in an entry and without the offset
// of a jump.
func (e *entry) bare() *entry {
	b := &entry{data: bytes.Clone(e.data)}
	clear(b.data[entryCache:entryTargetOffset])
	clear(b.data[entryComeFrom:entrySize])
	if verdict, ok := b.verdict(); ok && verdict >= 0 {
		b.setVerdict(0)
	}
	return b
}

func text(field []byte) string {
	name, _, _ := bytes.Cut(field, []byte{0})
	return string(name)
}

// newEntry joins an entry that matches every packet with a target.
func newEntry(target []byte) *entry {
	e := &entry{data: make([]byte, entrySize), read: -1}
	e.append(entryTargetOffset, nil)
	e.append(entryNextOffset, target)
	return e
}

// append adds an extension and notes where the entry ends after it.
func (e *entry) append(field int, extension []byte) {
	e.data = append(e.data, extension...)
	binary.NativeEndian.PutUint16(e.data[field:], uint16(len(e.data)))
}

// extension is a match or a target of revision 0.
func extension(name string, content []byte) []byte {
	data := make([]byte, extensionSize+(len(content)+7)&^7)
	binary.NativeEndian.PutUint16(data, uint16(len(data)))
	copy(data[extensionName:extensionRevision], name)
	copy(data[extensionSize:], content)
	return data
}

func verdictEntry(verdict int32) *entry {
	return newEntry(extension(standardTarget, binary.NativeEndian.AppendUint32(nil, uint32(verdict))))
}

// jump leads all packets to the first rule of a user chain.
func jump(to *entry) *entry {
	e := verdictEntry(0)
	e.to = to
	return e
}

// chainHead begins a user chain.
func chainHead(name string) *entry {
	content := make([]byte, errorNameLength)
	copy(content, name)
	return newEntry(extension(errorTarget, content))
}

// encodeRule makes the entry of a rule that was checked.
func encodeRule(r Rule) *entry {
	e := &entry{data: make([]byte, entrySize), read: -1}
	putPrefix(e.data[ipSource:], e.data[ipSourceMask:], r.Source)
	putPrefix(e.data[ipDestination:], e.data[ipDestinationMask:], r.Destination)
	putInterface(e.data[ipIn:], e.data[ipInMask:], r.In)
	putInterface(e.data[ipOut:], e.data[ipOutMask:], r.Out+r.NotOut)
	if r.NotOut != "" {
		e.data[ipInverse] |= inverseOut
	}
	binary.NativeEndian.PutUint16(e.data[ipProtocol:], uint16(r.Protocol))
	e.append(entryTargetOffset, encodePort(r.Protocol, r.DestinationPort))
	e.append(entryNextOffset, encodeTarget(r.Target))
	return e
}

func putPrefix(address, mask []byte, prefix netip.Prefix) {
	if prefix.IsValid() {
		copy(address, prefix.Masked().Addr().AsSlice())
		copy(mask, net.CIDRMask(prefix.Bits(), 32))
	}
}

// putInterface writes a whole name: its mask reaches to the 0 behind it.
func putInterface(field, mask []byte, name string) {
	if name != "" {
		copy(field, name)
		copy(mask, bytes.Repeat([]byte{0xff}, len(name)+1))
	}
}

// encodePort makes a match with struct xt_tcp or xt_udp (include/uapi/linux/
// netfilter/xt_tcpudp.h): the ranges of source and destination ports, then flags.
func encodePort(protocol Protocol, port uint16) []byte {
	if port == 0 {
		return nil
	}
	size := map[Protocol]int{TCP: 12, UDP: 10}[protocol]
	content := make([]byte, size)
	for i, value := range []uint16{0, 0xffff, port, port} {
		binary.NativeEndian.PutUint16(content[2*i:], value)
	}
	return extension(protocol.String(), content)
}

// encodeTarget makes a standard target, or one with struct
// nf_nat_ipv4_multi_range_compat (include/uapi/linux/netfilter/nf_nat.h): the number
// of ranges, 1, then flags, first and last address, first and last port. Revision 0
// of the targets has it, which all kernels know.
func encodeTarget(target Target) []byte {
	name, flags := "", uint32(0)
	switch target.kind {
	case snat:
		name, flags = "SNAT", rangeMapIPs
	case dnat:
		name, flags = "DNAT", rangeMapIPs|rangeProtocolSpecified
	case redirect:
		name, flags = "REDIRECT", rangeProtocolSpecified
	case masquerade:
		name = "MASQUERADE"
	case giveBack:
		return verdictEntry(verdictReturn).target()
	case drop:
		return verdictEntry(verdictDrop).target()
	}
	content := binary.NativeEndian.AppendUint32(nil, 1)
	content = binary.NativeEndian.AppendUint32(content, flags)
	address := make([]byte, 4)
	copy(address, target.address.Addr().AsSlice())
	content = append(append(content, address...), address...)
	content = binary.BigEndian.AppendUint16(content, target.address.Port())
	content = binary.BigEndian.AppendUint16(content, target.address.Port())
	return extension(name, content)
}
