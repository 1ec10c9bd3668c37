// Package packages installs the packages of the system that a build or a test needs,
// where it can, and says what is missing where it cannot.
package packages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/command"
	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
)

// Need is a package of Debian, found by a command, by a library of the C compiler
// or by a file.
type Need struct {
	Package string `json:"package"`
	Command string `json:"command,omitempty"`
	Library string `json:"library,omitempty"`
	File    string `json:"file,omitempty"`
}

// Validate refuses a need that names no package, or not exactly one way to find it.
func (n Need) Validate() error {
	ways := 0
	for _, way := range []string{n.Command, n.Library, n.File} {
		if way != "" {
			ways++
		}
	}
	if n.Package == "" || ways != 1 {
		return fmt.Errorf("a need has a package and either a command, a library or a file, not %+v", n)
	}
	return nil
}

// Install makes sure that what is needed is there. As root on Debian or Ubuntu it
// installs what is missing, and says so first; otherwise the error gives the command.
func Install(ctx context.Context, runner command.Runner, needs []Need) error {
	missing := Missing(ctx, needs)
	if len(missing) == 0 {
		return nil
	}
	install := append([]string{"apt-get", "install", "--yes", "--no-install-recommends"}, missing...)
	commands := append(architectures(missing), []string{"apt-get", "update"}, install)
	if _, err := exec.LookPath("apt-get"); err != nil {
		return hint.Add(fmt.Errorf("the system lacks %s", strings.Join(missing, ", ")),
			"these are Debian's names: install what your system calls them (a C compiler, and the static libraries with their headers)")
	}
	if os.Geteuid() != 0 {
		return hint.Add(fmt.Errorf("the system lacks %s, and installing them needs root", strings.Join(missing, ", ")),
			"sudo %s", strings.Join(lines(commands), " && sudo "))
	}
	runner.UI.Say("the system lacks %s: installing from its packages (apt-get)", strings.Join(missing, ", "))
	step := runner.UI.Step("apt-get install %s", strings.Join(missing, " "))
	env := append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	for _, args := range commands {
		if _, err := runner.Run(ctx, command.Command{Dir: "/", Env: env, Args: args}); err != nil {
			step.Fail()
			return err
		}
	}
	if left := Missing(ctx, needs); len(left) > 0 {
		step.Fail()
		return fmt.Errorf("apt-get has installed %s, and what they should provide is still not found", strings.Join(left, ", "))
	}
	step.Done("")
	return nil
}

// architectures are the commands that let apt install packages of other architectures
// (https://wiki.debian.org/Multiarch/HOWTO).
func architectures(names []string) [][]string {
	var archs []string
	var add [][]string
	for _, name := range names {
		if _, arch, foreign := strings.Cut(name, ":"); foreign && !slices.Contains(archs, arch) {
			archs = append(archs, arch)
			add = append(add, []string{"dpkg", "--add-architecture", arch})
		}
	}
	return add
}

// lines are commands as one types them.
func lines(commands [][]string) []string {
	var lines []string
	for _, args := range commands {
		lines = append(lines, strings.Join(args, " "))
	}
	return lines
}

// Missing names the packages that are needed and not there, each once.
func Missing(ctx context.Context, needs []Need) []string {
	var missing []string
	for _, need := range needs {
		if !need.met(ctx) && !slices.Contains(missing, need.Package) {
			missing = append(missing, need.Package)
		}
	}
	return missing
}

// met looks for the command in PATH or for the file, or asks the C compiler for the
// library: it answers with a path if it has one, and with the bare name if not.
func (n Need) met(ctx context.Context) bool {
	switch {
	case n.Command != "":
		_, err := exec.LookPath(n.Command)
		return err == nil
	case n.File != "":
		_, err := os.Stat(n.File)
		return err == nil
	}
	return filepath.IsAbs(command.FirstLine(ctx, gotool.CCompiler(), "-print-file-name="+n.Library))
}
