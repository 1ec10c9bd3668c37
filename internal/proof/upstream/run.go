package upstream

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/proof/gotest"
	"k3s9p/internal/workdir"
)

// runner runs a list of packages of a set.
type runner struct {
	*builder.Builder
	set  *pin.Set
	test pin.UpstreamTest
	step *progress.Step
}

// side is one of the two that are compared: stock or patched.
type side struct{ name, modfile string }

func (r runner) run(ctx context.Context, s side, packages []string) (suite, error) {
	r.step.Note("%s", s.name)
	path, err := r.searchPath(ctx, s)
	if err != nil {
		return nil, err
	}
	if !r.test.Ginkgo {
		return r.goTest(ctx, s, path, packages...)
	}
	all := make(suite)
	for _, pkg := range packages {
		specs, err := r.ginkgo(ctx, s, path, pkg)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, specs)
	}
	return all, nil
}

// searchPath builds the programs that tests look for in PATH, and returns one with
// them.
func (r runner) searchPath(ctx context.Context, s side) (string, error) {
	path := os.Getenv("PATH")
	if len(r.test.Path) == 0 {
		return path, nil
	}
	dir, err := r.Temporary("path")
	if err != nil {
		return "", err
	}
	args := append([]string{"go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-modfile=" + s.modfile, "-o", dir + "/"}, r.test.Path...)
	_, err = r.Run(ctx, command.Command{Dir: r.set.Dir, Env: r.Offline(r.set.Config.CGO), Args: args})
	return dir + string(filepath.ListSeparator) + path, err
}

// goTest runs packages with go test. Tests that fail are a result; that go test
// itself does not work is an error.
func (r runner) goTest(ctx context.Context, s side, path string, args ...string) (suite, error) {
	c := command.Command{
		Dir: r.set.Dir,
		Env: append(r.Offline(r.set.Config.CGO), "PATH="+path),
		Args: append([]string{"go", "test", "-json", "-trimpath", "-buildvcs=false", "-vet=off", "-mod=readonly", "-timeout=10m",
			"-modfile=" + s.modfile}, args...),
		Line: func(line string) { r.step.Note("%s: %s", s.name, line) },
	}
	if r.test.Root {
		// Whatever the tests mount or configure ends with them, also the network
		// namespaces that they name in /run.
		c.Unshare = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET
		c.Args = append([]string{"sh", "-c", `mount -t tmpfs tmpfs /run && mkdir /run/netns && exec "$@"`, "sh"}, c.Args...)
	}
	out, runErr := r.Run(ctx, c)
	if ctx.Err() != nil {
		return nil, runErr
	}
	results, output, err := read(out)
	if err != nil {
		return nil, err
	}
	if runErr != nil && len(results) == 0 {
		return nil, fmt.Errorf("run the tests of build/%s (%s): %w", r.set.Name, s.name, runErr)
	}
	r.keepOutput(s, results, output)
	results.dropPackages()
	return results, nil
}

// read returns the outcomes that go test -json tells, and what was printed, by test.
func read(text []byte) (suite, map[string][]string, error) {
	results := make(suite)
	output := make(map[string][]string)
	builds := make(map[string][]string) // by package, as the failed event of a test names it
	err := gotest.Read(bytes.NewReader(text), func(event gotest.Event) {
		name := strings.TrimSpace(event.Package + " " + event.Test)
		switch event.Action {
		case "pass", "fail", "skip":
			if event.Test != "" || event.Action == "fail" {
				results[name] = event.Action
			}
		case "output":
			output[name] = append(output[name], event.Output)
		case "build-output":
			builds[event.ImportPath] = append(builds[event.ImportPath], event.Output)
		}
		if event.FailedBuild != "" {
			output[name] = append(output[name], builds[event.FailedBuild]...)
		}
	})
	return results, output, err
}

// keepOutput leaves what failed tests printed in dist/reports.
func (r runner) keepOutput(s side, results suite, output map[string][]string) {
	failed := results.failures()
	if len(failed) == 0 {
		return
	}
	name := fmt.Sprintf("upstream-%s-%s.log", r.set.Name, strings.ReplaceAll(s.name, ", ", "-"))
	file, err := os.OpenFile(r.Work("tmp", name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	for _, test := range failed {
		fmt.Fprintf(file, "=== %s\n%s\n", test, strings.Join(output[test], ""))
	}
	if err := file.Close(); err == nil {
		_ = workdir.CopyFile(file.Name(), r.Dist("reports", name), 0o644)
	}
}
