package contract

import "k3s9p/internal/node"

// Bench is what go tool mage bench tells the scenario that measures.
type Bench struct {
	Results string `json:"results"` // the file that the results go to, as JSON
	Rounds  int    `json:"rounds"`  // how often each side is measured, in turn
}

// Results are the two sides of a run.
type Results struct {
	Native Figures `json:"native"`
	GVisor Figures `json:"gvisor"`
}

// Figures are what was measured on one side, a value per round.
type Figures struct {
	// Until k3s9p up --detach returns, in seconds: with the programs to unpack; of a
	// new cluster whose programs are there; of a cluster that was stopped.
	UpUnpacking []float64 `json:"upUnpacking"`
	UpNew       []float64 `json:"upNew"`
	UpStopped   []float64 `json:"upStopped"`
	// Down is k3s9p down, in seconds, three times a round.
	Down []float64 `json:"down"`
	// KubeletHealthy is from the start of the kubelet until its /healthz says ok, in
	// seconds, three times a round.
	KubeletHealthy []float64 `json:"kubeletHealthy"`

	// Of 50 MiB over the network, in MB/s: by a process of the node, by one in a pod,
	// and by one in a pod from another pod.
	NodeDownload []float64 `json:"nodeDownload"`
	NodeUpload   []float64 `json:"nodeUpload"`
	PodDownload  []float64 `json:"podDownload"`
	PodUpload    []float64 `json:"podUpload"`
	BetweenPods  []float64 `json:"betweenPods"`

	// Pod and Service are what a pod asks another one for, at its own address and by way
	// of a Service.
	Pod     Asked `json:"pod"`
	Service Asked `json:"service"`

	// Components are the memory of the idle node by program, once, in the first round.
	Components []Component `json:"components"`
	// Machine is the memory of this machine that a sandbox uses: before the first up,
	// and with the idle node. On the machine itself there is none before.
	Machine struct {
		Before MachineMemory `json:"before"`
		Idle   MachineMemory `json:"idle"`
	} `json:"machine"`
}

// Asked is what was asked of one address, by four clients at once.
type Asked struct {
	Rate     []float64 `json:"rate"`     // HTTP requests on connections that are kept, a second
	P99      []float64 `json:"p99"`      // of those, in milliseconds
	Download []float64 `json:"download"` // of 50 MiB, in MB/s
	UDP      []float64 `json:"udp"`      // datagrams with an answer, a second
}

// MachineMemory is the proportional set size of processes together, in bytes, by what
// it is (proc_pid_smaps(5)).
type MachineMemory struct {
	// Own is anonymous and shared memory, a sandbox's among it: what the machine has
	// to keep.
	Own int64 `json:"own"`
	// Files is page cache of files that are mapped, of the programs above all: what
	// the machine drops when it needs the memory.
	Files int64 `json:"files"`
}

// Component is the memory of a program, in bytes; no PSS where the kernel has none.
type Component struct {
	Name string `json:"name"`
	node.Memory
}

// ImageResults are the two ways to keep images where overlayfs does not work on the disk.
type ImageResults struct {
	Native ImageFigures `json:"native"`
	Tmpfs  ImageFigures `json:"tmpfs"`
}

// ImageFigures are what an image of 300 MB costs, a value per round.
type ImageFigures struct {
	// Import is from its archive until it is unpacked; Start until a pod of it is
	// ready, three a round: in seconds.
	Import []float64 `json:"import"`
	Start  []float64 `json:"start"`
	// ImageBytes is the filesystem that the image takes, AllBytes with three containers,
	// and Memory what this machine has to keep for the sandbox: in bytes.
	ImageBytes []float64 `json:"imageBytes"`
	AllBytes   []float64 `json:"allBytes"`
	Memory     []float64 `json:"memory"`
}

// RungResults are a node with the privileges of root, and the same without, in namespaces
// of its own, in one sandbox.
type RungResults struct {
	Privileged RungFigures `json:"privileged"`
	Rootless   RungFigures `json:"rootless"`
}

// RungFigures are a value per round, or several.
type RungFigures struct {
	Up       []float64 `json:"up"`       // of a new cluster whose programs are there, in seconds
	Download []float64 `json:"download"` // of 50 MiB by a pod from outside, in MB/s
	Upload   []float64 `json:"upload"`   // the other way
	Latency  []float64 `json:"latency"`  // of a request of a pod outside, on a connection that is kept, in milliseconds
	// Gateway is the memory of the process outside, idle and with 1,000 connections of
	// pods (RSS), in bytes.
	Gateway     []float64 `json:"gateway,omitempty"`
	GatewayBusy []float64 `json:"gatewayBusy,omitempty"`
}
