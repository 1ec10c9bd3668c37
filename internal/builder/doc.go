// Package builder makes a distribution: pinned sources and a series of patches
// become the files in dist/. It has a file per phase:
//
//	pin.go      1. read what is built and in which versions (build/*)
//	source.go   2. fetch the modules, checked by go.sum (or local.go: prove that a
//	               folder is the pinned source)
//	patch.go    3. writable trees, with the overlay and the patches (see package patch)
//	compile.go  4. go build, with the trees in place of the modules
//	bundle.go   5. one archive of all files, attached to the launcher
//	record.go   6. build.json, SHA256SUMS, and the files in dist/
//
// Build, in builder.go, is the pipeline from top to bottom. Each phase is skipped
// when the digest of its inputs is known, writes aside and renames, and can be
// killed at any point: what it leaves is found in .work/tmp and removed by the
// next build. One build runs at a time (lock.go).
//
// Beside it stands what maintainers do with the same trees: edit.go (patch:*),
// check.go (lint, test:unit), upstream.go (test:upstream), sandbox.go (test:sandbox),
// reproduce.go (verify:*), bench.go and benchcluster.go (bench). What all phases share
// is in work.go (folders and files), needs.go (packages of the system), lock.go and
// command.go.
package builder
