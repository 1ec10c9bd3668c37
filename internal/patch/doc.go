// Package patch reads series of patches, applies them strictly, and regenerates
// them from a git tree.
//
// A series is a directory with a series.yaml, which names the modules and versions
// that it applies to, and patches in the order of their numbers. A patch begins
// with a DEP-3 header (https://dep-team.pages.debian.net/deps/dep3/), then a line
// "---", then a diff as git prints it.
//
// Strict means: a hunk must stand at its exact line, and every line of it must
// match. There is no fuzz, no offset and no reject file: drift is an error that
// names the patch, the hunk, the file and the line.
package patch
