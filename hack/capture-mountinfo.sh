#!/bin/sh
# Captures the mount table of the machine it runs on, for
# overlay/cadvisor/fs/testdata/mountinfo, and what statfs(2) and stat(2) say of
# each mount point, for the expectations. Runs in a sandbox with nothing but a
# shell and coreutils:
#
#	hack/capture-mountinfo.sh NAME
#
# writes NAME.mountinfo and NAME.txt to the current folder. Look through both
# before they are committed: paths may tell more than you want.
set -eu
name=${1:?usage: capture-mountinfo.sh NAME}
cat /proc/self/mountinfo >"$name.mountinfo"
{
	uname -a
	echo
	# The fifth field is the mount point, with spaces and the like as \040.
	while read -r _ _ _ _ point _; do
		path=$(printf '%b' "$(echo "$point" | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g')")
		stat -f -c '%n: %T type=%t bsize=%S blocks=%b free=%f avail=%a files=%c ffree=%d' "$path" || true
		stat -c '    st_dev=%Hd:%Ld' "$path" || true
	done <"$name.mountinfo"
} >"$name.txt" 2>&1
echo "$name.mountinfo: $(wc -l <"$name.mountinfo") mounts"
