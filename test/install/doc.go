// Package install does what somebody does who downloads a release into a gVisor sandbox:
// it fetches install.sh from a server, over https, installs with it, brings the cluster
// up, and later goes on with a newer release.
package install
