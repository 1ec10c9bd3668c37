package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k3s9p/internal/builder"
	"k3s9p/internal/progress"
	"k3s9p/internal/proof/scenario"
	"k3s9p/internal/rmtree"
)

// witness is a file that must survive, in a place that a careless removal reaches:
// mmdebstrap mounts the machine's /dev/shm into the root that it makes, sandboxes
// have links to /run and nodes their CNI directories.
type witness struct {
	file string
	made []string // directories that were made for it, outer ones first
}

// interruptedSandbox kills test:sandbox at random moments, also while it makes the
// Debian root. After each the witnesses have to be there, and the next build has to
// work. In the end the scenario passes, and nothing of the runs is left.
func interruptedSandbox(ctx context.Context, b *builder.Builder, distro string, times int, want []byte) (err error) {
	if why := scenario.Preflight(); why != nil {
		b.UI.Step("kill test:sandbox").Skip("%v", why)
		return nil
	}
	bound, err := os.MkdirTemp("", "k3s9p-witness-")
	if err != nil {
		return err
	}
	defer os.Remove(bound)
	witnesses := []*witness{{file: filepath.Join(bound, "file")}}
	name := filepath.Base(bound)
	for _, dir := range []string{"/dev/shm", "/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni", "/run/netns"} {
		witnesses = append(witnesses, &witness{file: filepath.Join(dir, name)})
	}
	for _, w := range witnesses {
		defer func() { err = errors.Join(err, w.remove()) }()
		if err := w.make(); err != nil {
			return err
		}
	}
	target := []string{"test:sandbox", "-scenario=overlayroot"}
	start := time.Now()
	if _, err := child(ctx, b, distro, 0, target...); err != nil {
		return err
	}
	whole := time.Since(start)
	for i := range times {
		step := b.UI.Step("kill test:sandbox, %d of %d, then build", i+1, times)
		after, err := killSandbox(ctx, b, distro, whole, bound, target)
		if err == nil {
			_, err = child(ctx, b, distro, 0, "build")
		}
		if err == nil {
			err = unharmed(b, witnesses, want)
		}
		if err != nil {
			step.Fail()
			return fmt.Errorf("after a kill of test:sandbox at %s: %w", progress.Elapsed(after), err)
		}
		step.Done("killed after %s of %s, nothing lost", progress.Elapsed(after), progress.Elapsed(whole))
	}
	if _, err := child(ctx, b, distro, 0, target...); err != nil {
		return err
	}
	mounts, err := rmtree.Mounts(b.Root)
	if err != nil || len(mounts) > 0 {
		return errors.Join(err, fmt.Errorf("mounts are left: %s", strings.Join(mounts, ", ")))
	}
	fmt.Printf("interrupted: %d killed runs of test:sandbox, nothing lost, nothing left\n", times)
	return unharmed(b, witnesses, want)
}

// killSandbox starts test:sandbox without a Debian root and kills it. A directory
// of somebody else's is mounted where the next build removes what killed ones left.
func killSandbox(ctx context.Context, b *builder.Builder, distro string, whole time.Duration, bound string, target []string) (time.Duration, error) {
	if err := rmtree.Tree(b.Work("root")); err != nil {
		return 0, err
	}
	for {
		place := b.Work("tmp", "witness")
		after := max(rand.N(whole), 10*time.Millisecond)
		mounted := make(chan error, 1)
		go func() { // test:sandbox sweeps .work/tmp when it starts
			time.Sleep(after / 2)
			err := os.MkdirAll(place, 0o755)
			if err == nil {
				err = unix.Mount(bound, place, "", unix.MS_BIND, "")
			}
			mounted <- err
		}()
		killed, err := child(ctx, b, distro, after, target...)
		if err := errors.Join(err, <-mounted); err != nil || killed {
			return after, err
		}
	}
}

func (w *witness) make() error {
	for dir := filepath.Dir(w.file); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		w.made = append([]string{dir}, w.made...)
	}
	if err := os.MkdirAll(filepath.Dir(w.file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(w.file, []byte(w.file), 0o644)
}

func (w *witness) remove() error {
	err := os.Remove(w.file)
	for i := len(w.made) - 1; i >= 0; i-- {
		err = errors.Join(err, os.Remove(w.made[i]))
	}
	return err
}

// unharmed checks that the witnesses are there and dist/ is as it was.
func unharmed(b *builder.Builder, witnesses []*witness, want []byte) error {
	for _, w := range witnesses {
		if data, err := os.ReadFile(w.file); err != nil || string(data) != w.file {
			return errors.Join(fmt.Errorf("%s was harmed", w.file), err)
		}
	}
	got, err := os.ReadFile(b.Dist(builder.SumsName))
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("dist/ has other files:\n%s", strings.Join(differentLines(want, got), "\n"))
	}
	return err
}
