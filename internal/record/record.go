// Package record says what a build was made of: build.json, in dist/ and in the
// bundle.
package record

// Build describes one build. It holds no times and no paths of the machine, so
// that the same sources give the same bytes.
type Build struct {
	Distribution string `json:"distribution"`
	// Version is the upstream version with the digest of all patches:
	// v1.36.3+k3s9p.0123456789ab.
	Version string `json:"version"`
	// Release is the version of k3s9p itself, v0.1.0, in what was released. A build
	// has none.
	Release string `json:"release,omitempty"`
	// Lacks is what upstream's build of the distribution has and this one has not.
	Lacks     []string  `json:"lacks,omitempty"`
	Toolchain Toolchain `json:"toolchain"`
	Sets      []Set     `json:"sets"`
	Outputs   []Output  `json:"outputs"`
}

// Toolchain is what compiled the programs.
type Toolchain struct {
	Go       string `json:"go"`           // go1.26.8
	Platform string `json:"platform"`     // linux/amd64
	CC       string `json:"cc,omitempty"` // the first line of cc --version, where a set uses cgo
}

// Set is one directory of build/.
type Set struct {
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	CGO        bool     `json:"cgo"`
	Tags       []string `json:"tags,omitempty"`
	Flags      []string `json:"flags"`
	Patches    []Patch  `json:"patches,omitempty"`
	Unverified []string `json:"unverified,omitempty"` // modules whose source is not the pinned one
	Replaced   []string `json:"replaced,omitempty"`   // modules by K3S9P_REPLACE: not what is pinned
	Modules    []Module `json:"modules"`
}

// Module is a module that is compiled into a program of the set.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum"` // h1: of the module zip, as in go.sum
}

// Patch is a patch that was applied.
type Patch struct {
	Module      string `json:"module"`
	Version     string `json:"version"`
	Name        string `json:"name"`
	Digest      string `json:"sha256"`
	Description string `json:"description"`
	Forwarded   string `json:"forwarded"`
	Bug         string `json:"bug"`
}

// Output is a file, or a link to another one.
type Output struct {
	Path   string `json:"path"` // relative, with slashes
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"` // the file that a symbolic link names
}
