package nat

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The tables in testdata are the answers to IPT_SO_GET_INFO and, without their
// header, IPT_SO_GET_ENTRIES:
//
//	CGO_ENABLED=0 go test -c -o nat.test
//	unshare -n sh -c 'iptables-legacy-restore --counters < testdata/foreign.rules
//	    ./nat.test -test.run=TestCapture -capture=testdata/linux-6.18-foreign.nat'
//
// and the same with no rules, and in a sandbox of gVisor with plain.rules.
var capture = flag.String("capture", "", "write the table nat of this network namespace to `FILE`")

func TestCapture(t *testing.T) {
	if *capture == "" {
		t.Skip("there is no flag -capture")
	}
	s, err := openSocket("nat")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	info, err := s.readInfo()
	if err != nil {
		t.Fatal(err)
	}
	_, entries, err := s.readEntries()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*capture, append(info, entries...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// captured are the tables by the names of their files.
func captured(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.nat")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no tables in testdata: %v", err)
	}
	tables := make(map[string][]byte)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		tables[filepath.Base(path)] = data
	}
	return tables
}

func decodeCaptured(t *testing.T, data []byte) *table {
	t.Helper()
	decoded, err := decode(decodeInfo(data), data[infoSize:])
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

func TestRoundTrip(t *testing.T) {
	for name, data := range captured(t) {
		t.Run(name, func(t *testing.T) {
			l, entries := decodeCaptured(t, data).encode()
			if l != decodeInfo(data) || !bytes.Equal(entries, data[infoSize:]) {
				t.Errorf("decoded and encoded it is another table: %+v, %+v", l, decodeInfo(data))
			}
		})
	}
}

// Every jump, hook and policy leads to the same entry after our rules came and
// went, and while they are there.
func TestInstallUninstall(t *testing.T) {
	for name, data := range captured(t) {
		t.Run(name, func(t *testing.T) {
			original := decodeCaptured(t, data)
			sorted, err := byChain(append(append([]Rule{}, clusterRules...), otherRules...))
			if err != nil {
				t.Fatal(err)
			}
			edited := decodeCaptured(t, data)
			for _, c := range tables[0].chains {
				if err := edited.install(c, sorted[c]); err != nil {
					t.Fatal(err)
				}
			}
			l, with := edited.encode()
			edited, err = decode(l, with)
			if err != nil {
				t.Fatalf("with our rules: %v", err)
			}
			if err := verify(edited, tables[0].chains, sorted); err != nil {
				t.Error(err)
			}
			sameJumps(t, original, edited)
			for _, c := range tables[0].chains {
				if err := edited.uninstall(c); err != nil {
					t.Fatal(err)
				}
			}
			l, without := edited.encode()
			if l != decodeInfo(data) || !bytes.Equal(without, data[infoSize:]) {
				t.Errorf("without our rules it is another table: %+v, %+v", l, decodeInfo(data))
			}
		})
	}
}

// sameJumps compares where the entries of the first table lead with where the same
// entries, in their order, lead in the second.
func sameJumps(t *testing.T, before, after *table) {
	t.Helper()
	position := make(map[*entry]int)
	found := 0
	for _, e := range after.entries {
		if found < len(before.entries) && e.same(before.entries[found]) && !ours(after, e) {
			position[e] = found
			found++
		}
	}
	if found != len(before.entries) {
		t.Fatalf("%d of %d entries of others are there", found, len(before.entries))
	}
	for e, i := range position {
		if to := before.entries[i].to; to != nil && position[e.to] != slices.Index(before.entries, to) {
			t.Errorf("entry %d leads to entry %d of others, not to %d", i, position[e.to], slices.Index(before.entries, to))
		}
	}
	for hook, policy := range before.policy {
		if policy != nil && position[after.policy[hook]] != slices.Index(before.entries, policy) {
			t.Errorf("the policy of hook %d is entry %d of others", hook, position[after.policy[hook]])
		}
	}
}

// ours reports whether an entry is one of ours: in our chains, or a jump to them.
func ours(t *table, e *entry) bool {
	for _, c := range tables[0].chains {
		start, end, ok := t.userChain(ownName(c))
		if ok && (slices.Contains(t.entries[start:end], e) || e.to == t.entries[start+1]) {
			return true
		}
	}
	return false
}

// A rule without a target jumps to the entry behind it. If that is our jump, and
// ours goes, it jumps to the one behind ours.
func TestRemoveBehindRuleWithoutTarget(t *testing.T) {
	for name, data := range captured(t) {
		t.Run(name, func(t *testing.T) {
			edited := decodeCaptured(t, data)
			if err := edited.install(Prerouting, clusterRules[:3]); err != nil {
				t.Fatal(err)
			}
			ours := edited.first[0]
			empty := jump(ours)
			edited.entries = slices.Insert(edited.entries, slices.Index(edited.entries, ours), empty)
			edited.first[0] = empty
			next := edited.entries[slices.Index(edited.entries, ours)+1]
			if err := edited.uninstall(Prerouting); err != nil {
				t.Fatal(err)
			}
			if empty.to != next || edited.first[0] != empty {
				t.Error("the rule without a target leads elsewhere")
			}
		})
	}
}

// Whatever a kernel answers, decode returns an error or a table that encodes to the
// same bytes.
func FuzzDecode(f *testing.F) {
	for _, data := range captured(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < infoSize {
			return
		}
		l := decodeInfo(data)
		decoded, err := decode(l, data[infoSize:])
		if err != nil {
			return
		}
		l.size = uint32(len(data) - infoSize)
		if again, entries := decoded.encode(); again != l || !bytes.Equal(entries, data[infoSize:]) {
			t.Errorf("decoded and encoded it is another table: %+v, %+v", again, l)
		}
	})
}

// jumpVerdict finds where the first jump of a table says where it leads.
func jumpVerdict(t *testing.T, data []byte) int {
	t.Helper()
	at := infoSize
	for _, e := range decodeCaptured(t, data).entries {
		if e.to != nil {
			return at + len(e.data) - len(e.target()) + extensionSize
		}
		at += len(e.data)
	}
	t.Fatal("the table has no jump")
	return 0
}

// A table whose parts do not fit is refused, and not read past its end.
func TestDecodeRefuses(t *testing.T) {
	good := captured(t)["linux-6.18-foreign.nat"]
	for _, test := range []struct {
		name string
		at   int // of a number in the answers
		size int
		want string
	}{
		{"entry without a target", infoSize + entryNextOffset, 2, "with its target at"},
		{"target in the header", infoSize + entryTargetOffset, 2, "with its target at"},
		{"number of entries", infoEntries, 4, "where the kernel says 111"},
		{"first rule", infoEntry, 4, "no entry begins at the ends of hook 0"},
		{"jump", jumpVerdict(t, good), 4, "where no entry begins"},
		{"policy", infoUnder + 4*4, 4, "no entry begins at the ends of hook 4"},
	} {
		t.Run(test.name, func(t *testing.T) {
			data := bytes.Clone(good)
			clear(data[test.at:][:test.size])
			data[test.at] = entrySize - 1 // in the byte order of all machines that are built for
			_, err := decode(decodeInfo(data), data[infoSize:])
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	if _, err := decode(decodeInfo(good), good[infoSize:len(good)-1]); err == nil {
		t.Error("a table that ends within its last entry is taken")
	}
}
