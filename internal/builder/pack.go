package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"k3s9p/internal/bundle"
	"k3s9p/internal/digest"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/workdir"
)

// pack makes the launcher with all files in it, or finds it made.
func (b *Builder) pack(ctx context.Context, d distribution) (Compiled, error) {
	final, err := b.packedDir(d)
	if err != nil {
		return Compiled{}, err
	}
	if c, ok := readCompiled(final); ok {
		return c, nil
	}
	step := b.UI.Step("pack %s%s", LauncherName, b.forOther())
	c, err := b.attach(ctx, d, final, step)
	if err != nil {
		step.Fail()
		return Compiled{}, err
	}
	step.Done("%s", progress.Size(c.Outputs[0].Size))
	return c, nil
}

// packedDir is the directory of .work for the launcher with all files in it.
func (b *Builder) packedDir(d distribution) (string, error) {
	manifest, err := bundle.Manifest(d.record)
	return b.Work(b.own("out"), "bundle-"+digest.Of(bundle.Format(), d.launcher, string(manifest))[:16]), err
}

func (b *Builder) attach(ctx context.Context, d distribution, final string, step *progress.Step) (Compiled, error) {
	dir, err := b.Temporary("bundle")
	if err != nil {
		return Compiled{}, err
	}
	head, err := os.Open(d.launcher)
	if err != nil {
		return Compiled{}, err
	}
	defer head.Close()
	file, err := os.OpenFile(filepath.Join(dir, LauncherName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return Compiled{}, err
	}
	sum := newBackgroundSum()
	err = bundle.Attach(io.MultiWriter(file, sum), head, d.record, func(output record.Output) (io.ReadCloser, error) {
		step.Note("%s", output.Path)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return b.openFrame(d, output)
	})
	sha256 := sum.finish()
	info, statErr := file.Stat()
	if err := errors.Join(err, statErr, file.Close()); err != nil {
		return Compiled{}, err
	}
	return Compiled{Outputs: []record.Output{{Path: LauncherName, Size: info.Size(), SHA256: sha256}}}.publish(dir, final)
}

// openFrame opens the compressed form of an output, and makes it where it is missing.
func (b *Builder) openFrame(d distribution, output record.Output) (io.ReadCloser, error) {
	set, ok := d.source(output)
	if !ok {
		return nil, errors.New("no set has made " + output.Path)
	}
	name := b.frameName(output.SHA256, output.Path)
	if _, err := os.Stat(name); err != nil {
		if _, _, err := b.sumAndFrame(set.File(output)); err != nil {
			return nil, err
		}
	}
	return os.Open(name)
}

// frameName is where the compressed form of a file is kept, by its content.
func (b *Builder) frameName(sum, file string) string {
	return b.Work(b.own("frames"), filepath.Base(file)+"-"+digest.Of(bundle.Format(), sum)[:32])
}

// sumAndFrame hashes a file and compresses it at the same time. It returns the
// SHA-256 in hexadecimal and the size in bytes.
func (b *Builder) sumAndFrame(file string) (string, int64, error) {
	in, err := os.Open(file)
	if err != nil {
		return "", 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return "", 0, err
	}
	dir, err := b.Temporary("frame")
	if err != nil {
		return "", 0, err
	}
	defer os.Remove(dir)
	frame := filepath.Join(dir, "frame")
	sum := ""
	var group errgroup.Group
	group.Go(func() (err error) {
		sum, _, err = digest.File(file)
		return err
	})
	group.Go(func() error {
		out, err := os.Create(frame)
		if err != nil {
			return err
		}
		return errors.Join(bundle.Compress(out, in, info.Size()), out.Close())
	})
	if err := group.Wait(); err != nil {
		return "", 0, err
	}
	return sum, info.Size(), workdir.Publish(frame, b.frameName(sum, file))
}

// backgroundSum is a SHA-256 that is computed while its writer does other things.
type backgroundSum struct {
	blocks chan []byte
	done   chan string
	rest   []byte
}

func newBackgroundSum() *backgroundSum {
	s := &backgroundSum{blocks: make(chan []byte, 4), done: make(chan string)}
	go func() {
		h := sha256.New()
		for block := range s.blocks {
			h.Write(block)
		}
		s.done <- hex.EncodeToString(h.Sum(nil))
	}()
	return s
}

func (s *backgroundSum) Write(p []byte) (int, error) {
	s.rest = append(s.rest, p...)
	if len(s.rest) >= 1<<20 {
		s.blocks <- s.rest
		s.rest = make([]byte, 0, 1<<20+64<<10)
	}
	return len(p), nil
}

// finish returns the sum in hexadecimal.
func (s *backgroundSum) finish() string {
	s.blocks <- s.rest
	close(s.blocks)
	return <-s.done
}

// pruneOutputs removes outputs that older builds left.
func (b *Builder) pruneOutputs(d distribution) error {
	packed, err := b.packedDir(d)
	inUse := []string{packed, filepath.Dir(d.launcher)}
	for _, set := range d.sets {
		inUse = append(inUse, set.Dir)
	}
	return errors.Join(err, b.Prune(b.own("out"), inUse))
}

// pruneSources removes sources that older builds left, when nothing is built from them any
// more, for no architecture.
func (b *Builder) pruneSources() error {
	return errors.Join(b.Prune("src", nil), b.Prune("mod", nil))
}

// pruneFrames keeps the frames of the files of this build only: they are large
// and quick to make.
func (b *Builder) pruneFrames(build record.Build) error {
	var names []string
	for _, output := range build.Outputs {
		if output.Link == "" {
			names = append(names, filepath.Base(b.frameName(output.SHA256, output.Path)))
		}
	}
	entries, err := os.ReadDir(b.Work(b.own("frames")))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if !slices.Contains(names, entry.Name()) {
			err = errors.Join(err, os.Remove(b.Work(b.own("frames"), entry.Name())))
		}
	}
	return err
}
