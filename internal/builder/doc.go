// Package builder makes a distribution: pinned sources and a series of patches
// become the files in dist/. It has a file per phase, after package pin has read what
// is built and in which versions:
//
//	source.go    1. fetch the modules, checked by go.sum, and unpack them
//	patch.go     2. writable trees, with the overlay and the patches (see package patch)
//	modfile.go   3. a go.mod with the trees in place of the modules
//	compile.go   4. go build; images.go and launcher.go do so with our own programs
//	parts.go     where a set is made of parts (k3s): a tree and a set for each of them
//	join.go      and one program of all parts, which unpacks itself (see package k3s)
//	pack.go      5. one archive of all files, attached to the launcher
//	install.go   6. the files in dist/, with build.json and SHA256SUMS
//
// Build, in build.go, is the pipeline from top to bottom. Each phase is skipped when
// what it makes is cached by the digest of its inputs, makes things aside and renames
// them, and can be killed at any point: see package workdir. One build runs at a time.
package builder
