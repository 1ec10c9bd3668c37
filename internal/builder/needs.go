package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/hint"
)

// provide makes sure that the packages that some sets need from the system are
// there. As root on Debian or Ubuntu it installs what is missing, and says so
// first; otherwise the error gives the command.
func (b *Builder) provide(ctx context.Context, sets []*Set) error {
	missing := missingPackages(ctx, sets)
	if len(missing) == 0 {
		return nil
	}
	install := append([]string{"apt-get", "install", "--yes", "--no-install-recommends"}, missing...)
	_, noApt := exec.LookPath("apt-get")
	if noApt != nil {
		return hint.Add(fmt.Errorf("the system lacks %s", strings.Join(missing, ", ")),
			"these are Debian's names: install what your system calls them (a C compiler, and the static libraries with their headers)")
	}
	if os.Geteuid() != 0 {
		return hint.Add(fmt.Errorf("the system lacks %s, and installing them needs root", strings.Join(missing, ", ")),
			"sudo apt-get update && sudo %s", strings.Join(install, " "))
	}
	b.UI.Say("the system lacks %s: installing from its packages (apt-get)", strings.Join(missing, ", "))
	step := b.UI.Step("apt-get install %s", strings.Join(missing, " "))
	env := append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	for _, args := range [][]string{{"apt-get", "update"}, install} {
		if _, err := b.run(ctx, command{dir: "/", env: env, args: args}); err != nil {
			step.Fail()
			return err
		}
	}
	if left := missingPackages(ctx, sets); len(left) > 0 {
		step.Fail()
		return fmt.Errorf("apt-get has installed %s, and what they should provide is still not found", strings.Join(left, ", "))
	}
	step.Done("")
	return nil
}

func missingPackages(ctx context.Context, sets []*Set) []string {
	var missing []string
	for _, set := range sets {
		for _, need := range set.Config.Needs {
			if !need.met(ctx) && !slices.Contains(missing, need.Package) {
				missing = append(missing, need.Package)
			}
		}
	}
	return missing
}

// met looks for the command in PATH or for the file, or asks the C compiler for the library: it
// answers with a path if it has one, and with the bare name if not.
func (n Need) met(ctx context.Context) bool {
	if n.Command != "" {
		_, err := exec.LookPath(n.Command)
		return err == nil
	}
	if n.File != "" {
		_, err := os.Stat(n.File)
		return err == nil
	}
	found := firstLine(ctx, compiler(), "-print-file-name="+n.Library)
	return filepath.IsAbs(found)
}

// compiler is the C compiler that cgo uses.
func compiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return strings.Fields(cc)[0]
	}
	return "gcc"
}

// writable fails early where dist/ or .work/ cannot be written: a cold build takes
// minutes.
func (b *Builder) writable() error {
	for _, dir := range []string{b.work(), b.dist()} {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			var probe *os.File
			if probe, err = os.CreateTemp(dir, ".tmp-probe-"); err == nil {
				err = errors.Join(probe.Close(), os.Remove(probe.Name()))
			}
		}
		if err != nil {
			return hint.Add(fmt.Errorf("%s cannot be written: %w", dir, err), "nothing was built; make the folder writable, or work on a copy of the repository")
		}
	}
	return nil
}
