// Package release makes what a release page holds, in dist/release/, out of what the
// builder has put into dist/, and verifies it as somebody who trusts nobody would.
//
// A release is an exact set of files, nothing more or less (see Names). The same
// commit and the same dist/ give the same bytes, in any directory and at any time:
// every date is that of the commit, or that of SOURCE_DATE_EPOCH.
//
// The version is said in one place: the newest section of CHANGELOG.md
// (https://keepachangelog.com/en/1.1.0/). Everything else is given it.
package release
