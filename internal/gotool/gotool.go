// Package gotool runs the go command with all that changes its result pinned.
package gotool

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"k3s9p/internal/command"
	"k3s9p/internal/record"
)

// Go is the go command.
type Go struct {
	command.Runner
	Variables []string // that go before those of this process
	TempDir   string   // where the offline commands put their temporary files
	Arch      string   // of the programs that are compiled, as Go calls it; this machine's if empty
	AtOnce    int      // how many go commands run at the same time; 0 is one
}

// Target is the architecture of the programs that are compiled.
func (g Go) Target() string { return cmp.Or(g.Arch, runtime.GOARCH) }

// triplet is what Debian calls an architecture where it keeps the libraries and the
// compilers of several (https://wiki.debian.org/Multiarch/Tuples).
var triplet = map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

// Architectures are those that can be compiled for, as Go calls them.
func Architectures() []string { return slices.Sorted(maps.Keys(triplet)) }

// CrossCompiler is Debian's C compiler for an architecture.
func CrossCompiler(arch string) string { return triplet[arch] + "-gcc" }

// cross are the variables for compiling for another architecture.
func (g Go) cross() []string {
	if g.Target() == runtime.GOARCH {
		return nil
	}
	return []string{"GOARCH=" + g.Arch, "CC=" + CrossCompiler(g.Arch), "PKG_CONFIG_LIBDIR=/usr/lib/" + triplet[g.Arch] + "/pkgconfig"}
}

// unpinned are variables that would change what a build gives.
var unpinned = []string{"GOFLAGS", "GOWORK", "GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT", "GODEBUG", "GOTOOLCHAIN", "GO111MODULE",
	"CGO_ENABLED", "CGO_CFLAGS", "CGO_CPPFLAGS", "CGO_CXXFLAGS", "CGO_LDFLAGS", "GCCGO", "SOURCE_DATE_EPOCH", "GOGC", "GOMEMLIMIT", "LC_ALL", "LANG"}

// Env is the environment of the go command: the user's, for the proxy and the
// caches, with all that changes the result pinned.
func (g Go) Env(cgo bool) []string {
	return append(g.EnvWithGC(cgo), g.tunedGC()...)
}

// EnvWithGC is Env for a go command that collects its garbage as it does for
// everybody.
func (g Go) EnvWithGC(cgo bool) []string {
	env := slices.Clone(g.Variables)
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		replaced := slices.ContainsFunc(g.Variables, func(own string) bool { return strings.HasPrefix(own, name+"=") })
		if !replaced && !slices.Contains(unpinned, name) {
			env = append(env, entry)
		}
	}
	enabled := "0"
	if cgo {
		enabled = "1"
	}
	env = append(env, g.cross()...)
	return append(env, "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local", "GO111MODULE=on", "GOAMD64=v1", "GOARM64=v8.0", "LC_ALL=C", "CGO_ENABLED="+enabled)
}

// Offline is Env for compiling what is fetched: no module is asked for any more, and
// temporary files are where the next build removes them if this one is killed.
func (g Go) Offline(cgo bool) []string {
	env := append(g.Env(cgo), "GOPROXY=off")
	if err := os.MkdirAll(g.TempDir, 0o755); err != nil {
		return env // the go command will say what is wrong
	}
	return append(env, "GOTMPDIR="+g.TempDir)
}

// tunedGC lets the compiler and the linker collect only when they come near their
// share of the memory: half of it, divided by the processors, and by the go commands that
// run at the same time. They live for seconds; not collecting saves 7 % of a link of kube.
func (g Go) tunedGC() []string {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil
	}
	share := max(uint64(info.Totalram)*uint64(info.Unit)/2/uint64(runtime.NumCPU()), 1<<30)
	return []string{"GOGC=off", fmt.Sprintf("GOMEMLIMIT=%d", share/uint64(max(g.AtOnce, 1)))}
}

// Toolchain asks the go command and, for cgo, the C compiler for their versions.
func (g Go) Toolchain(ctx context.Context, dir string, cgo bool) (record.Toolchain, error) {
	out, err := g.Run(ctx, command.Command{Dir: dir, Env: g.Env(false), Args: []string{"go", "env", "GOVERSION"}})
	if err != nil {
		return record.Toolchain{}, err
	}
	chain := record.Toolchain{Go: strings.TrimSpace(string(out)), Platform: runtime.GOOS + "/" + g.Target()}
	if cgo {
		chain.CC = command.FirstLine(ctx, g.compiler(), "--version")
	}
	return chain, nil
}

func (g Go) compiler() string {
	if g.Target() != runtime.GOARCH {
		return CrossCompiler(g.Arch)
	}
	return CCompiler()
}

// CCompiler is the C compiler that cgo uses for this machine.
func CCompiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return strings.Fields(cc)[0]
	}
	return "gcc"
}
