package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k3s9p/internal/progress"
	"k3s9p/internal/rmtree"
)

// Reproducible builds a distribution twice, in folders with other names and with
// nothing in .work/ or dist/, and compares the SHA256SUMS. With cold, each build
// also has an empty Go build cache, which takes as long as two first builds.
func (b *Builder) Reproducible(ctx context.Context, distro string, cold bool) error {
	var sums [2][]byte
	for i, pattern := range []string{"k3s9p-a-", "k3s9p-the-second-and-longer-name-"} {
		twin, remove, err := b.twin(pattern)
		if err != nil {
			return err
		}
		defer remove()
		if cold {
			twin.env = append(twin.env, "GOCACHE="+filepath.Join(filepath.Dir(twin.Root), "cache"))
		}
		if err := twin.Build(ctx, distro); err != nil {
			return err
		}
		if sums[i], err = os.ReadFile(twin.dist(sumsName)); err != nil {
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
func (b *Builder) Interrupted(ctx context.Context, distro string, times int) error {
	if times < 1 {
		return fmt.Errorf("-times=%d: it has to be 1 or more", times)
	}
	twin, remove, err := b.twin("k3s9p-killed-")
	if err != nil {
		return err
	}
	defer remove()
	start := time.Now()
	if _, err := twin.child(ctx, distro, 0, "build"); err != nil {
		return err
	}
	whole := time.Since(start)
	want, err := os.ReadFile(twin.dist(sumsName))
	if err != nil {
		return err
	}
	for i := range times {
		step := b.UI.Step("kill %d of %d, then build again", i+1, times)
		after, err := twin.killOne(ctx, distro, &whole)
		if err == nil {
			_, err = twin.child(ctx, distro, 0, "build")
		}
		var got []byte
		if err == nil {
			got, err = os.ReadFile(twin.dist(sumsName))
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
	return twin.interruptedSandbox(ctx, distro, times, want)
}

// killOne starts a build with nothing in .work/ and dist/ and kills it at a random
// moment, which it returns. A build that ends before its moment proves nothing:
// it tells how long a build takes now, and another one is started.
func (b *Builder) killOne(ctx context.Context, distro string, whole *time.Duration) (time.Duration, error) {
	for {
		for _, dir := range []string{b.work("src"), b.work("mod"), b.work("out"), b.work("frames"), b.dist()} {
			if err := rmtree.Tree(dir); err != nil {
				return 0, err
			}
		}
		after, start := rand.N(*whole), time.Now()
		killed, err := b.child(ctx, distro, after, "build")
		if err != nil || killed {
			return after, err
		}
		*whole = min(*whole, time.Since(start))
	}
}

// child runs targets of this program in the twin, and kills it after a time that is
// not 0; it reports whether it did. What it started ends with it or soon after.
func (b *Builder) child(ctx context.Context, distro string, kill time.Duration, targets ...string) (bool, error) {
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, self, targets...)
	cmd.Dir = b.Root
	cmd.Env = append(os.Environ(), "DISTRO="+distro)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
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

// twin copies the sources of the repository to a new folder.
func (b *Builder) twin(pattern string) (*Builder, func(), error) {
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		return nil, nil, err
	}
	remove := func() { _ = rmtree.Tree(dir) }
	root := filepath.Join(dir, "repository")
	if err := b.copySources(root); err != nil {
		remove()
		return nil, nil, fmt.Errorf("copy the repository to %s: %w", root, err)
	}
	return &Builder{Root: root, UI: b.UI}, remove, nil
}

func (b *Builder) copySources(to string) error {
	return filepath.WalkDir(b.Root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(b.Root, path)
		if err != nil {
			return err
		}
		if slices.Contains([]string{".git", ".work", "dist"}, name) {
			return filepath.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return copyFile(path, filepath.Join(to, name), info.Mode().Perm())
	})
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
