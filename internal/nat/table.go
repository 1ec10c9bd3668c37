package nat

import (
	"errors"
	"fmt"
	"slices"
)

// layout is where the built-in chains of a table are, as struct ipt_getinfo and
// ipt_replace say it: offsets in bytes of the first and the last entry by hook
// (include/uapi/linux/netfilter.h, enum nf_inet_hooks).
type layout struct {
	validHooks           uint32
	hookEntry, underflow [hooks]uint32
	entries, size        uint32
}

const hooks = 5 // NF_INET_NUMHOOKS

// hookOf are the numbers of the hooks.
var hookOf = map[Chain]int{Prerouting: 0, Forward: 2, Output: 3, Postrouting: 4}

// table is a table of ip_tables. What it holds as offsets is kept as references
// here, so that entries can be put in and taken out: in the encoded form each of
// them moves all that is behind it.
type table struct {
	layout  layout // as it was read
	first   [hooks]*entry
	policy  [hooks]*entry // the last of a built-in chain
	entries []*entry
}

// decode makes a table of what the kernel has given.
func decode(l layout, data []byte) (*table, error) {
	t := &table{layout: l}
	at := make(map[uint32]*entry)
	for offset := uint32(0); int(offset) < len(data); {
		e, err := decodeEntry(data[offset:])
		if err != nil {
			return nil, fmt.Errorf("entry %d at offset %d: %w", len(t.entries), offset, err)
		}
		e.read = len(t.entries)
		at[offset] = e
		t.entries = append(t.entries, e)
		offset += uint32(len(e.data))
	}
	if int(l.entries) != len(t.entries) {
		return nil, fmt.Errorf("there are %d entries where the kernel says %d", len(t.entries), l.entries)
	}
	for i, e := range t.entries {
		if verdict, ok := e.verdict(); ok && verdict >= 0 {
			if e.to = at[uint32(verdict)]; e.to == nil {
				return nil, fmt.Errorf("entry %d jumps to offset %d, where no entry begins", i, verdict)
			}
		}
	}
	for hook := range hooks {
		if l.validHooks&(1<<hook) == 0 {
			continue
		}
		t.first[hook], t.policy[hook] = at[l.hookEntry[hook]], at[l.underflow[hook]]
		if t.first[hook] == nil || t.policy[hook] == nil {
			return nil, fmt.Errorf("no entry begins at the ends of hook %d, %d and %d", hook, l.hookEntry[hook], l.underflow[hook])
		}
	}
	return t, nil
}

// encode gives a table the kernel's form.
func (t *table) encode() (layout, []byte) {
	l := t.layout
	l.entries, l.size = uint32(len(t.entries)), 0
	at := make(map[*entry]uint32)
	for _, e := range t.entries {
		at[e] = l.size
		l.size += uint32(len(e.data))
	}
	data := make([]byte, 0, l.size)
	for _, e := range t.entries {
		if e.to != nil {
			e.setVerdict(int32(at[e.to]))
		}
		data = append(data, e.data...)
	}
	for hook := range hooks {
		if l.validHooks&(1<<hook) != 0 {
			l.hookEntry[hook], l.underflow[hook] = at[t.first[hook]], at[t.policy[hook]]
		}
	}
	return l, data
}

// ownName is the user chain that has our rules of a built-in chain.
func ownName(c Chain) string { return "K3S9P-" + c.String() }

// own makes the rules of a user chain, with the end that iptables(8) makes too.
func own(rules []Rule) []*entry {
	var entries []*entry
	for _, rule := range rules {
		entries = append(entries, encodeRule(rule))
	}
	return append(entries, verdictEntry(verdictReturn))
}

// install puts rules into our user chain and a jump to it at the head of the
// built-in one.
func (t *table) install(c Chain, rules []Rule) error {
	if t.first[hookOf[c]] == nil {
		return fmt.Errorf("the table has no chain %s", c)
	}
	entries := own(rules)
	if start, end, ok := t.userChain(ownName(c)); ok {
		for _, e := range t.entries {
			if e.to == t.entries[start+1] {
				e.to = entries[0]
			}
		}
		t.entries = slices.Replace(t.entries, start+1, end, entries...)
	} else {
		last := len(t.entries) - 1
		if name, ok := t.entries[last].chainName(); !ok || name != errorTarget {
			return errors.New("the table does not end with an error target")
		}
		t.entries = slices.Insert(t.entries, last, append([]*entry{chainHead(ownName(c))}, entries...)...)
	}
	first := t.first[hookOf[c]]
	if jumps := t.jumps(c, entries[0]); len(jumps) == 1 && jumps[0] == first {
		return nil
	}
	t.uninstallJumps(c, entries[0])
	at, head := slices.Index(t.entries, t.first[hookOf[c]]), jump(entries[0])
	t.entries = slices.Insert(t.entries, at, head)
	t.first[hookOf[c]] = head
	return nil
}

// uninstall takes away our user chain and the jump to it.
func (t *table) uninstall(c Chain) error {
	start, _, ok := t.userChain(ownName(c))
	if !ok {
		return nil
	}
	t.uninstallJumps(c, t.entries[start+1])
	start, end, _ := t.userChain(ownName(c))
	ours := t.entries[start:end]
	for i, e := range t.entries {
		if slices.Contains(ours, e.to) && !slices.Contains(ours, e) {
			return fmt.Errorf("entry %d, which is not ours, jumps to chain %s", i, ownName(c))
		}
	}
	t.entries = slices.Delete(t.entries, start, end)
	return nil
}

// verify returns nil if install would change nothing, or, without rules, if there
// is nothing of ours.
func (t *table) verify(c Chain, rules []Rule) error {
	start, end, ok := t.userChain(ownName(c))
	if len(rules) == 0 {
		if ok {
			return fmt.Errorf("chain %s is there", ownName(c))
		}
		return nil
	}
	if !ok {
		return fmt.Errorf("there is no chain %s", ownName(c))
	}
	first := t.entries[start+1]
	if jumps := t.jumps(c, first); len(jumps) != 1 || jumps[0] != t.first[hookOf[c]] {
		return fmt.Errorf("chain %s does not begin with its one jump to %s", c, ownName(c))
	}
	if got, want := t.entries[start+1:end], own(rules); !slices.EqualFunc(got, want, (*entry).same) {
		for i, rule := range rules {
			if i >= len(got) || !got[i].same(want[i]) {
				return fmt.Errorf("chain %s has not, or not as rule %d: %s", ownName(c), i+1, rule)
			}
		}
		return fmt.Errorf("chain %s has %d entries instead of %d", ownName(c), len(got), len(want))
	}
	return nil
}

// userChain finds the entries of a user chain, from its head to before the next.
func (t *table) userChain(name string) (start, end int, ok bool) {
	start = slices.IndexFunc(t.entries, func(e *entry) bool { n, ok := e.chainName(); return ok && n == name })
	if start < 0 {
		return 0, 0, false
	}
	length := slices.IndexFunc(t.entries[start+1:], func(e *entry) bool { _, ok := e.chainName(); return ok })
	if length < 1 { // the head of a chain is never its end
		return 0, 0, false
	}
	return start, start + 1 + length, true
}

// jumps finds the entries of a built-in chain that lead every packet to our chain.
func (t *table) jumps(c Chain, to *entry) []*entry {
	start, end := slices.Index(t.entries, t.first[hookOf[c]]), slices.Index(t.entries, t.policy[hookOf[c]])
	if start < 0 || end < start {
		return nil
	}
	var found []*entry
	for _, e := range t.entries[start:end] {
		if e.to == to && e.same(jump(to)) {
			found = append(found, e)
		}
	}
	return found
}

func (t *table) uninstallJumps(c Chain, to *entry) {
	for _, e := range t.jumps(c, to) {
		t.remove(e)
	}
}

// remove takes out an entry that is not the last. What led to it leads to the next:
// a rule of iptables(8) without a target is a jump to the entry behind it.
func (t *table) remove(gone *entry) {
	at := slices.Index(t.entries, gone)
	next := t.entries[at+1]
	t.entries = slices.Delete(t.entries, at, at+1)
	for _, e := range t.entries {
		if e.to == gone {
			e.to = next
		}
	}
	for hook := range hooks {
		if t.first[hook] == gone {
			t.first[hook] = next
		}
	}
}
