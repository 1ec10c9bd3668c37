// Package application runs what a user expects of a cluster in a gVisor sandbox: an
// application as Helm renders it, from the directory of manifests, by name, with its
// volume, its numbers and its autoscaler; and Services under load while pods go and come.
package application
