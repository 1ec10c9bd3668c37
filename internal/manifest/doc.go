// Package manifest keeps a cluster as the manifests in a directory say: what a file
// holds is applied when the file appears or changes, and what it no longer holds is
// deleted, also when the file is gone.
//
// It is server-side apply over plain requests, because client-go would add a third to
// the size of the launcher, and kubectl apply is a process of 100 MB for each change.
// What was applied is recorded in a file beside the directory; an object that somebody
// changes in the cluster stays as it is until its manifest changes, as with k3s.
//
// The directory is read every so often: on 9p nothing tells of a change. Do not use it
// for objects that depend on each other in more than their order: what fails is tried
// again, file by file, and nothing else is waited for.
package manifest
