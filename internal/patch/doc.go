// Package patch reads series of patches, applies them strictly, and regenerates
// them from a git tree.
//
// A series is a directory with a series.yaml, which names the modules and versions
// that it applies to, and patches in the order of their numbers. A patch begins
// with a DEP-3 header (https://dep-team.pages.debian.net/deps/dep3/), then a line
// "---", then a diff as git prints it.
//
// Strict means: every line of a hunk must match, and in the version that a series was
// made for, the first one in its series.yaml, it must stand at its exact line. There is
// no fuzz and no reject file: drift is an error that names the patch, the hunk, the file
// and the line. In the other versions that the series names, forks of the module among
// them, a hunk may have moved, which is reported.
package patch
