package pin

import (
	"cmp"
	"slices"
	"strings"

	"k3s9p/internal/digest"
)

// PatchDigest identifies all patches of some sets: 12 hexadecimal digits, or
// nothing where nothing is patched.
func PatchDigest(sets ...*Set) string {
	var parts []string
	for _, set := range sets {
		for _, series := range set.Sources() {
			if series.Dir != "" {
				parts = append(parts, series.Digest)
			}
		}
	}
	if len(parts) == 0 {
		return ""
	}
	slices.Sort(parts)
	return digest.Of(slices.Compact(parts)...)[:12]
}

// Version is what the set's programs report: the upstream version, and
// +k3s9p.<patch digest> where they are patched.
func (s *Set) Version() string {
	return VersionWith(s.Upstream(), cmp.Or(s.stamp, PatchDigest(s)))
}

// Upstream is the version of upstream that the set's programs report.
func (s *Set) Upstream() string { return cmp.Or(s.upstream, s.Pins[s.Config.Module].Version) }

// VersionWith is an upstream version with a patch digest, which may be empty.
func VersionWith(upstream, digest string) string {
	if digest == "" {
		return upstream
	}
	separator := "+"
	if strings.Contains(upstream, "+") {
		separator = "."
	}
	return upstream + separator + "k3s9p." + digest
}
