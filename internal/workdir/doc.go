// Package workdir is the layout of a work tree: what is built is in dist/, and what a
// build keeps for the next one is in .work/, by the digest of its inputs.
//
//	src/        patched modules
//	stock/      the same without patches, for comparisons
//	mod/        generated go.mod files
//	out/        compiled sets
//	frames/     compressed files
//	inputs/     what of k3s is no module
//	root/       the archive of the sandboxes' root
//	sandboxes/  the sandboxes that run
//	edit/       trees of patch:edit
//	tmp/        what is not finished
//	lock        one build runs at a time
//
// All but edit/ can be removed at any time. A name is complete or absent at any
// moment: what is made is made in tmp/, or beside its final name as .tmp-*, and
// renamed; what a killed build leaves is removed by the next one that holds the lock.
package workdir
