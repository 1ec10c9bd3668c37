// Package experiment replays a published experiment in a real gVisor sandbox: step by
// step, what keeps a node from running there, what was tried in vain, and which
// patch removes which cause. It writes dist/reports/experiment.{json,md}.
package experiment
