#!/bin/sh
# Installs k3s9p: downloads a release, checks it, and puts one file into place.
#
#   sh install.sh                          into /usr/local/bin
#   PREFIX=~/.local sh install.sh          into ~/.local/bin, without root
#   VERSION=v0.1.0 sh install.sh           another version
#   URL=https://… sh install.sh            from elsewhere: the directory that has
#                                          v0.1.0/SHA256SUMS and so on
#
# It needs curl or GNU wget, and sha256sum, shasum or openssl. Proxies are taken from
# https_proxy and no_proxy, as curl and wget do. Nothing that was downloaded can be
# executed before its checksum, and its signature where ssh-keygen is there, are those
# of the release. The file in PREFIX/bin is the old one or the new one at any moment.
set -eu

# What "go tool mage release" writes here.
release='@VERSION@'
home='@URL@'
signers='@SIGNERS@'

version=${VERSION:-$release}
url=${URL:-$home}
prefix=${PREFIX:-/usr/local}

fail() {
	printf 'install.sh: %s\n' "$1" >&2
	if [ $# -gt 1 ]; then
		printf 'hint: %s\n' "$2" >&2
	fi
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

architecture() {
	if [ "$(uname -s)" != Linux ]; then
		fail "k3s9p runs on Linux, and this is $(uname -s)" 'install it in the sandbox or in a virtual machine'
	fi
	case $(uname -m) in
	x86_64 | amd64) echo amd64 ;;
	aarch64 | arm64) echo arm64 ;;
	*) fail "there is no k3s9p for $(uname -m), only for x86_64 and aarch64" ;;
	esac
}

# secure refuses an address that is not https. Tests may serve plain http on this
# machine, if they say so.
secure() {
	case $1 in
	https://?*) ;;
	http://127.0.0.1:* | http://localhost:*)
		[ "${K3S9P_INSTALL_HTTP_LOOPBACK-}" = 1 ] || fail "$1 is not https" 'URL=https://…'
		;;
	*) fail "$1 is not https" 'URL=https://…' ;;
	esac
}

# download ADDRESS FILE; it fails with the status of a download that did not work.
download() {
	secure "$1"
	if have curl; then
		allowed='=https'
		case $1 in http://*) allowed='=http,https' ;; esac
		curl --fail --silent --show-error --location --proto "$allowed" --proto-redir "$allowed" --tlsv1.2 \
			--connect-timeout 20 --speed-limit 1000 --speed-time "$patience" --retry 2 --output "$2" "$1"
	else
		download_wget "$1" "$2" 5
	fi
}

# download_wget ADDRESS FILE REDIRECTS: wget would follow a redirect from https to
# http, so each one is looked at here.
download_wget() {
	secure "$1"
	if wget --quiet --server-response --max-redirect=0 --secure-protocol=TLSv1_2 --tries=2 --timeout="$patience" \
		--output-document="$2" "$1" 2>"$work/headers"; then
		return
	fi
	next=$(sed -n 's/^ *[Ll]ocation: *\([^ ]*\).*$/\1/p' "$work/headers" | tr -d '\r' | tail -n 1)
	if [ -z "$next" ] || [ "$3" -eq 0 ]; then
		sed -n '/^ *HTTP\//p' "$work/headers" | tail -n 1 >&2
		return 1
	fi
	download_wget "$next" "$2" $(($3 - 1))
}

# sum FILE prints its SHA-256.
sum() {
	if have sha256sum; then
		sha256sum <"$1"
	elif have shasum; then
		shasum -a 256 <"$1"
	else
		openssl dgst -sha256 -r <"$1"
	fi | cut -d ' ' -f 1
}

# check_signature compares SHA256SUMS with the keys in this script.
check_signature() {
	if [ -z "$signers" ]; then
		echo 'this install.sh names no key: the signature is not checked' >&2
		return
	fi
	if ! have ssh-keygen; then
		echo 'there is no ssh-keygen: the signature is not checked, only the checksum' >&2
		return
	fi
	# Asked before anything that was downloaded is looked at.
	if ssh-keygen -Y verify </dev/null 2>&1 | grep -q 'option -- *Y'; then
		echo 'the ssh-keygen here is older than that of OpenSSH 8.1: the signature is not checked, only the checksum' >&2
		return
	fi
	download "$from/SHA256SUMS.sig" "$work/SHA256SUMS.sig" || fail "$version is not signed: there is no $from/SHA256SUMS.sig"
	printf '%s\n' "$signers" >"$work/signers"
	ssh-keygen -Y verify -f "$work/signers" -I k3s9p -n file -s "$work/SHA256SUMS.sig" <"$work/SHA256SUMS" >/dev/null 2>&1 ||
		fail "the signature of $version is wrong" 'somebody has changed the release: do not use it'
}

main() {
	arch=$(architecture)
	file=k3s9p-linux-$arch
	patience=${K3S9P_INSTALL_PATIENCE:-60} # seconds without progress
	case $version in
	v[0-9]*) ;;
	*) fail "VERSION=$version is no version" "VERSION=$release" ;;
	esac
	[ -n "$url" ] || fail 'this install.sh was made without the address of a release page' "URL=https://… names the directory that has $version/SHA256SUMS"
	from=${url%/}/$version
	secure "$from"
	if ! have curl; then
		have wget || fail 'there is neither curl nor wget' 'install one of them'
		wget --version 2>/dev/null | grep -q '^GNU Wget ' || fail 'there is no curl, and wget is not that of GNU: it does not check certificates' 'install curl'
	fi
	have sha256sum || have shasum || have openssl || fail 'there is neither sha256sum nor shasum nor openssl' 'install coreutils'

	if ! mkdir -p "$prefix/bin" 2>/dev/null || [ ! -w "$prefix/bin" ]; then
		fail "$prefix/bin cannot be written" 'run it as root, or with PREFIX=~/.local'
	fi
	[ ! -d "$prefix/bin/k3s9p" ] || fail "$prefix/bin/k3s9p is a directory"
	umask 077
	work=$(mktemp -d "$prefix/bin/.k3s9p-install.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	download "$from/SHA256SUMS" "$work/SHA256SUMS" || fail "there is no $from/SHA256SUMS" "is there a release $version?"
	check_signature
	want=$(sed -n "s/^\([0-9a-f]\{64\}\)  $file\$/\1/p" "$work/SHA256SUMS")
	[ -n "$want" ] || fail "$version has no $file"
	download "$from/$file" "$work/$file" || fail "$from/$file could not be downloaded"
	got=$(sum "$work/$file")
	[ "$got" = "$want" ] || fail "$file has the SHA-256 $got, and the release says $want" 'the download was cut or changed: try again, and if it stays so do not use it'
	chmod 755 "$work/$file"
	# Sums and signatures say nothing of the version: this may be an older release.
	said=$("$work/$file" version 2>/dev/null | sed -n '1s/^k3s9p //p')
	[ "$said" = "$version" ] || fail "what is served as $version says that it is ${said:-no release}" 'do not use it'
	mv -f "$work/$file" "$prefix/bin/k3s9p"
	echo "k3s9p $version is in $prefix/bin/k3s9p"
	case :$PATH: in
	*:"$prefix/bin":*) echo 'next: k3s9p up --detach' ;;
	*) echo "next: $prefix/bin/k3s9p up --detach" ;;
	esac
}

# The last line, so that half of this script does nothing.
main
