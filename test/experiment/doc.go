// Package experiment shows, in a real gVisor sandbox, why a kubelet does not start
// there and which patch removes which cause. It writes its table to
// dist/reports/experiment.json.
package experiment
