package pin

import (
	"fmt"
	"slices"
)

// PatchedOnly is the set with the series of the given modules only. Its outputs
// are kept under another name, so that they do not displace those of the set.
func (s *Set) PatchedOnly(modules []string) *Set {
	changed := *s
	changed.Variant = fmt.Sprintf(".%d-patched", len(modules))
	changed.Series = slices.DeleteFunc(slices.Clone(s.Series), func(series PinnedSeries) bool { return !slices.Contains(modules, series.Pin.Path) })
	return &changed
}

// WithoutTag is the set without a build tag.
func (s *Set) WithoutTag(tag string) *Set {
	changed := *s
	changed.Variant = ".no-" + tag
	changed.Config.Tags = slices.DeleteFunc(slices.Clone(s.Config.Tags), func(other string) bool { return other == tag })
	return &changed
}
