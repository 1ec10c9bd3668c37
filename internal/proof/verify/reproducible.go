// Package verify proves what takes as long as builds: that they are reproducible, and
// that one that is killed harms nothing.
package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"k3s9p/internal/builder"
	"k3s9p/internal/progress"
	"k3s9p/internal/rmtree"
)

// Reproducible builds a distribution for an architecture twice, in directories with other
// names and with nothing in .work/ or dist/, and compares the SHA256SUMS. With cold, each
// build also has an empty Go build cache, which takes as long as two first builds.
func Reproducible(ctx context.Context, b *builder.Builder, distro, arch string, cold bool) error {
	var sums [2][]byte
	for i, pattern := range []string{"k3s9p-a-", "k3s9p-the-second-and-longer-name-"} {
		clone, remove, err := b.Clone(pattern)
		if err != nil {
			return err
		}
		defer remove()
		if cold {
			clone.WithEmptyCache()
		}
		if clone, err = clone.For(arch); err != nil {
			return err
		}
		if err := clone.Build(ctx, distro); err != nil {
			return err
		}
		if sums[i], err = os.ReadFile(clone.Dist(builder.SumsName)); err != nil {
			return err
		}
	}
	if diff := differentLines(sums[0], sums[1]); len(diff) > 0 {
		return fmt.Errorf("two builds of the same sources differ:\n%s", strings.Join(diff, "\n"))
	}
	fmt.Printf("reproducible: two builds gave the same %d files\n", bytes.Count(sums[0], []byte("\n")))
	return nil
}

// Interrupted kills builds with SIGKILL at random moments, runs each again, and
// compares the SHA256SUMS with those of a build that nobody disturbed. Then it does
// the same to test:sandbox.
func Interrupted(ctx context.Context, b *builder.Builder, distro string, times int) error {
	if times < 1 {
		return fmt.Errorf("-times=%d: it has to be 1 or more", times)
	}
	clone, remove, err := b.Clone("k3s9p-killed-")
	if err != nil {
		return err
	}
	defer remove()
	start := time.Now()
	if _, err := child(ctx, clone, distro, 0, "build"); err != nil {
		return err
	}
	whole := time.Since(start)
	want, err := os.ReadFile(clone.Dist(builder.SumsName))
	if err != nil {
		return err
	}
	for i := range times {
		step := b.UI.Step("kill %d of %d, then build again", i+1, times)
		after, err := killOne(ctx, clone, distro, &whole)
		if err == nil {
			_, err = child(ctx, clone, distro, 0, "build")
		}
		var got []byte
		if err == nil {
			got, err = os.ReadFile(clone.Dist(builder.SumsName))
		}
		if err == nil {
			if diff := differentLines(want, got); len(diff) > 0 {
				err = fmt.Errorf("after a kill at %s the build gives other files:\n%s", after, strings.Join(diff, "\n"))
			}
		}
		if err != nil {
			step.Fail()
			return err
		}
		step.Done("killed after %s of %s, same SHA256SUMS", progress.Elapsed(after), progress.Elapsed(whole))
	}
	fmt.Printf("interrupted: %d killed builds, each followed by one that gave the same %d files\n", times, bytes.Count(want, []byte("\n")))
	return interruptedSandbox(ctx, clone, distro, times, want)
}

// killOne starts a build with nothing in .work/ and dist/ and kills it at a random
// moment, which it returns. A build that ends before its moment proves nothing:
// it tells how long a build takes now, and another one is started.
func killOne(ctx context.Context, b *builder.Builder, distro string, whole *time.Duration) (time.Duration, error) {
	for {
		for _, dir := range []string{b.Work("src"), b.Work("mod"), b.Work("out"), b.Work("frames"), b.Dist()} {
			if err := rmtree.Tree(dir); err != nil {
				return 0, err
			}
		}
		after, start := rand.N(*whole), time.Now()
		killed, err := child(ctx, b, distro, after, "build")
		if err != nil || killed {
			return after, err
		}
		*whole = min(*whole, time.Since(start))
	}
}

// child runs targets of this program in a clone, and kills it after a time that is
// not 0; it reports whether it did. What it started ends with it or soon after.
func child(ctx context.Context, b *builder.Builder, distro string, kill time.Duration, targets ...string) (bool, error) {
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, self, targets...)
	cmd.Dir = b.Root
	cmd.Env = append(os.Environ(), "DISTRO="+distro)
	// It ends as by Ctrl-C, also when this process is killed: what it has in sandboxes
	// goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		return false, err
	}
	if kill > 0 {
		timer := time.AfterFunc(kill, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if kill > 0 && errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("mage %s in %s: %w\n%s", strings.Join(targets, " "), b.Root, err, output.String())
	}
	return false, nil
}

// differentLines lists the lines that only one of two SHA256SUMS has.
func differentLines(a, b []byte) []string {
	var diff []string
	for i, pair := range [][2][]byte{{a, b}, {b, a}} {
		for line := range strings.Lines(string(pair[0])) {
			if !bytes.Contains(pair[1], []byte(line)) {
				diff = append(diff, fmt.Sprintf("build %d: %s", i+1, strings.TrimSpace(line)))
			}
		}
	}
	return diff
}
