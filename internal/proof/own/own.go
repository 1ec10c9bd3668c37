// Package own checks this repository's own code: how it is written, and its tests.
package own

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/hint"
	"k3s9p/internal/packages"
)

// lintNeeds are the packages of the system that Lint needs.
var lintNeeds = []packages.Need{{Package: "shellcheck", Command: "shellcheck"}}

// testNeeds are the packages that tests would be skipped without.
var testNeeds = []packages.Need{{Package: "nftables", Command: "nft"}, {Package: "iptables", Command: "iptables-restore"}}

// comments are the checks of staticcheck that are off by default: every package and
// every exported name says what it is, as go doc expects it.
const comments = "-checks=inherit,ST1000,ST1020,ST1021,ST1022"

// Lint checks our own code, that under overlay/ and build/ included: gofmt, go vet,
// staticcheck, and the spelling; shellcheck for what is run by a shell; actionlint for
// the workflows.
func Lint(ctx context.Context, b *builder.Builder) error {
	if err := packages.Install(ctx, b.Runner, lintNeeds); err != nil {
		return err
	}
	for _, check := range []struct {
		name string
		args []string
	}{
		{"gofmt", append([]string{"gofmt", "-l"}, files(b.Root, ".go")...)},
		{"go vet", []string{"go", "vet", "./..."}},
		{"go vet of the targets", []string{"go", "vet", "-tags=mage", "./magefiles"}},
		{"staticcheck", []string{"go", "tool", "staticcheck", comments, "./..."}},
		{"staticcheck of the targets", []string{"go", "tool", "staticcheck", comments, "-tags=mage", "./magefiles"}},
		{"misspell", append([]string{"go", "tool", "misspell", "-error"}, files(b.Root, ".go", ".md", ".yaml")...)},
		{"shellcheck", []string{"shellcheck", "--severity=style", "internal/release/install.sh", "hack/capture-mountinfo.sh", "hack/start-k3s.sh", "hack/update-pins.sh", ".ci/run"}},
		{"actionlint", []string{"go", "tool", "actionlint", "-shellcheck=shellcheck"}},
	} {
		step := b.UI.Step("%s", check.name)
		out, err := b.Run(ctx, command.Command{Dir: b.Root, Env: b.Env(false), Args: check.args})
		if err == nil && len(out) > 0 && check.name == "gofmt" {
			err = hint.Add(errors.New("files are not formatted"), "gofmt -w %s", strings.Join(strings.Fields(string(out)), " "))
		}
		if err != nil {
			step.Fail()
			return fmt.Errorf("%s: %w\n%s", check.name, err, out)
		}
		step.Done("")
	}
	return nil
}

// files lists the files of the repository that end so, also the Go files that no package
// of the main module has.
func files(root string, endings ...string) []string {
	var found []string
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".work" || entry.Name() == ".git" || entry.Name() == "dist") {
			return filepath.SkipDir
		}
		if slices.Contains(endings, filepath.Ext(path)) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// Test runs the tests of the main module: units, and the targets as a user
// runs them. Results are not taken from the test cache, which does not know that
// the targets were compiled anew.
func Test(ctx context.Context, b *builder.Builder) error {
	if err := packages.Install(ctx, b.Runner, testNeeds); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "./...")
	cmd.Dir, cmd.Env = b.Root, b.Env(false)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return errors.Join(ctx.Err(), errors.New("tests of this repository failed"))
	}
	return nil
}
