// Package k3s is what k3s's own build scripts do that the go command does not: which
// links its programs have, in which versions its parts are, and how all of it becomes
// the archive in the one file that unpacks itself.
//
// What can be read from k3s's scripts is read from them. Where they no longer have the
// shape that this package knows, that is an error: an archive made by half the rules
// would start, and fail later.
package k3s
