// Package k3s runs the patched k3s in a gVisor sandbox with a 9p root, started by
// hack/start-k3s.sh and nothing else: k3s9p is not in the sandbox.
package k3s
