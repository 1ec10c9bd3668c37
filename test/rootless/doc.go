// Package rootless brings a cluster up in the sandbox that everybody has: root with
// Docker's default capabilities, and no cgroups.
package rootless
