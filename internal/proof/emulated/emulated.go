// Package emulated runs what was built for another architecture under qemu-user: each
// program says its version, and some tests of this repository pass. That shows that the
// programs are whole and for that architecture, and no more: a cluster needs a kernel of
// it.
package emulated

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/hint"
	"k3s9p/internal/packages"
	"k3s9p/internal/record"
)

// emulators are the programs of Debian's qemu-user-static, by the architecture.
var emulators = map[string]string{"arm64": "qemu-aarch64-static", "amd64": "qemu-x86_64-static"}

// limit is for one program to say its version: qemu translates 150 MB of it first.
const limit = 2 * time.Minute

// tested are packages whose tests start no program, which would be this machine's, and need
// no kernel of their own architecture.
var tested = []string{"./internal/bundle", "./internal/journal", "./internal/localpath", "./internal/manifest"}

// Test runs all programs that a builder for another architecture has made, and the tests.
func Test(ctx context.Context, b *builder.Builder) error {
	emulator := emulators[b.Target()]
	if b.Other == "" || emulator == "" {
		return hint.Add(fmt.Errorf("programs for %s are not emulated here", b.Target()), "on a machine of that architecture go tool mage test runs them")
	}
	build, err := read(b)
	if err != nil {
		return err
	}
	if err := packages.Install(ctx, b.Runner, []packages.Need{{Package: "qemu-user-static", Command: emulator}}); err != nil {
		return err
	}
	ran := 0
	for _, output := range build.Outputs {
		args, want := question(build, output)
		if args == nil {
			continue
		}
		step := b.UI.Step("%s", strings.Join(append([]string{output.Path}, args...), " "))
		if err := ask(ctx, emulator, b.Dist(output.Path), args, want); err != nil {
			step.Fail()
			return err
		}
		step.Done("%s", want)
		ran++
	}
	if ran == 0 {
		return errors.New("no program was run")
	}
	step := b.UI.Step("go test -exec=%s %s", emulator, strings.Join(tested, " "))
	args := append([]string{"go", "test", "-count=1", "-vet=off", "-exec=" + emulator}, tested...)
	if said, err := b.Run(ctx, command.Command{Dir: b.Root, Env: b.Env(false), Args: args}); err != nil {
		step.Fail()
		return fmt.Errorf("tests for %s under %s: %w\n%s", b.Target(), emulator, err, said)
	}
	step.Done("%d packages passed", len(tested))
	fmt.Printf("%d programs for %s say their version, and %d packages pass their tests\n", ran, b.Target(), len(tested))
	return nil
}

func read(b *builder.Builder) (record.Build, error) {
	var build record.Build
	data, err := os.ReadFile(b.Dist(builder.RecordName))
	if err != nil {
		return build, hint.Add(err, "go tool mage build -arch=%s", b.Target())
	}
	if err := json.Unmarshal(data, &build); err != nil {
		return build, fmt.Errorf("read %s: %w", b.Dist(builder.RecordName), err)
	}
	return build, nil
}

// question is how a program is asked for its version, and what it has to answer; args is
// nil for what is no program.
func question(build record.Build, output record.Output) (args []string, want string) {
	version := make(map[string]string) // by set
	for _, s := range build.Sets {
		version[s.Name] = s.Version
	}
	if path.Dir(output.Path) == "cni" {
		return []string{}, "supportedVersions" // CNI_COMMAND=VERSION asks
	}
	switch path.Base(output.Path) {
	case "kubectl":
		return []string{"version", "--client"}, version["kubernetes"]
	case "kubeadm":
		return []string{"version", "-o=short"}, version["kubernetes"]
	case "kube", "kube-control-plane", "pause.tar": // the first two are their links' program
		return nil, ""
	case "containerd", "ctr":
		return []string{"--version"}, version["containerd"]
	case "containerd-shim-runc-v2":
		return []string{"-v"}, version["containerd"]
	case "runc":
		return []string{"--version"}, strings.TrimPrefix(version["runc"], "v")
	case "kine":
		return []string{"--version"}, version["kine"]
	case "coredns":
		return []string{"-version"}, strings.TrimPrefix(version["coredns"], "v")
	case builder.LauncherName:
		return []string{"version"}, build.Version
	default: // the links of kube, and what is new
		return []string{"--version"}, version["kubernetes"]
	}
}

// ask runs a program, and looks for its answer in what it prints.
func ask(ctx context.Context, emulator, program string, args []string, want string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// A link is a program under another name.
	cmd := exec.CommandContext(ctx, emulator, append([]string{"-0", path.Base(program), program}, args...)...)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=VERSION")
	cmd.Stdin = strings.NewReader(`{"cniVersion": "1.0.0"}`)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if err == nil && (want == "" || !strings.Contains(output.String(), want)) {
		err = fmt.Errorf("it does not say %q", want)
	}
	if err != nil {
		return fmt.Errorf("%s %s under %s: %w: %s", program, strings.Join(args, " "), emulator, err, strings.TrimSpace(output.String()))
	}
	return nil
}
