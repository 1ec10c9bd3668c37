package blocker

import (
	"context"
	"fmt"

	"k3s9p/internal/probe"
)

var littleMemory = Blocker{
	ID:      "memory",
	Title:   "too little memory for a node",
	Symptom: "kubelet has insufficient memory available",
	Source:  "kubelet pkg/kubelet/eviction: with less than 100 MiB available it starts no pod; runsc sandbox/sandbox.go: the cgroup's limit is the memory of a gVisor sandbox",
	Remedy:  None,
	Action:  "give it more: docker run --memory, the memory limit of the pod, or that of the virtual machine",
	Check: func(_ context.Context, h *Host) (Answer, string) {
		have, by, err := probe.Memory()
		if err != nil {
			return unclear(err)
		}
		evidence := fmt.Sprintf("%s %d MiB, and a node needs %d MiB", by, have>>20, h.Memory>>20)
		if have < h.Memory {
			return Found, evidence
		}
		return Fine, evidence
	},
}
