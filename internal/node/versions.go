package node

import (
	"cmp"
	"fmt"
	"strings"

	"golang.org/x/mod/semver"

	"k3s9p/internal/hint"
	"k3s9p/internal/record"
)

// Versions are those of a program, or of the one that last brought up a cluster.
type Versions struct {
	Release    string `json:"release,omitempty"` // of k3s9p; empty if it was built, not released
	Kubernetes string `json:"kubernetes,omitempty"`
}

// VersionsOf are those of a distribution.
func VersionsOf(build record.Build) Versions {
	return Versions{Release: build.Release, Kubernetes: kubernetesVersion(build)}
}

// String is what a user reads.
func (v Versions) String() string {
	return cmp.Or(v.Release, "no release") + ", Kubernetes " + cmp.Or(v.Kubernetes, "of an unknown version")
}

// olderThan reports whether this release, or its Kubernetes, is the older one. What a
// newer Kubernetes has written an older one may not be able to read
// (https://kubernetes.io/releases/version-skew-policy/). Unknown versions are not older.
func (v Versions) olderThan(other Versions) bool {
	return older(v.Release, other.Release) || older(v.Kubernetes, other.Kubernetes)
}

// older compares without what follows the numbers: a snapshot is as old as its release.
func older(a, b string) bool {
	a, b = numbers(a), numbers(b)
	return semver.IsValid(a) && semver.IsValid(b) && semver.Compare(a, b) < 0
}

func numbers(version string) string {
	version, _, _ = strings.Cut(version, "+")
	version, _, _ = strings.Cut(version, "-")
	return version
}

// upgrade is the cluster as these versions continue it, or the error that they are too
// old for it.
func (c Cluster) upgrade(p Paths, to Versions) (Cluster, error) {
	if to.olderThan(c.Versions) {
		return c, hint.Add(fmt.Errorf("the cluster in %s was brought up by a newer k3s9p (%s), and this one is older (%s)", p.Data, c.Versions, to),
			"use that one, or another --data-dir; k3s9p down --purge removes the cluster")
	}
	c.Versions = Versions{Release: cmp.Or(to.Release, c.Release), Kubernetes: to.Kubernetes}
	return c, nil
}
