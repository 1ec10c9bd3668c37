#!/bin/sh
# Moves each pin in build/ to its newest patch release, where there is one and the patch
# series still applies to it; the others stay as they are, and it says why. Run it in the
# root of the repository, in a clean tree.
set -eu
kept=$(mktemp -d)
trap 'rm -rf "$kept"' EXIT

# moved SET MODULE: its pin is a newer one now, and everything in patches/ applies.
moved() {
	(cd "$1" && go get "$2@patch" && go mod tidy) >"$kept/log" 2>&1 || return
	git diff --quiet -- "$1" && return
	go tool mage patch:verify >"$kept/log" 2>&1
}

for config in build/*/build.yaml; do
	grep -q '^distributions: \[[a-z]' "$config" || continue # a set for tests is of a month on purpose
	grep -q '^parts:' "$config" && continue                 # k3s has no tags that are versions of Go, and names the pins of its parts
	set=$(dirname "$config")
	module=$(sed -n 's/^module: *//p' "$config")
	cp "$set/go.mod" "$set/go.sum" "$kept"
	if moved "$set" "$module"; then
		git diff --quiet -- "$set" || echo "$set: $(git diff --unified=0 -- "$set/go.mod" | grep "^+.*$module " | tr -d '+\t')"
	else
		cp "$kept/go.mod" "$kept/go.sum" "$set"
		echo "$set stays: $(tail -n 1 "$kept/log")" >&2
	fi
done
