// Package crash kills the programs of a cluster in a gVisor sandbox, one after the
// other and all at once, and looks whether the cluster comes back with the same
// objects.
package crash
