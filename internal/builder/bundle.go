package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"k3s9p/internal/bundle"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
)

// launcherName is the file in dist/ that carries the distribution.
const launcherName = "k3s9p"

// packDir is the folder of .work for the launcher with all files in it.
func (b *Builder) packDir(build record.Build, launcher string) (string, error) {
	manifest, err := bundle.Manifest(build)
	return b.work("out", "bundle-"+digestOf(bundle.Format(), launcher, string(manifest))[:16]), err
}

// pack makes the launcher with all files in it, in the folder final, and returns
// its entry in the record.
func (b *Builder) pack(ctx context.Context, final string, build record.Build, sets []compiled, launcher string) (record.Output, error) {
	var output record.Output
	data, err := os.ReadFile(filepath.Join(final, "output.json"))
	if err == nil {
		return output, json.Unmarshal(data, &output)
	}
	step := b.UI.Step("pack %s", launcherName)
	if output, err = b.packTo(ctx, final, build, sets, launcher, step); err != nil {
		step.Fail()
		return output, err
	}
	step.Done("%s", progress.Size(output.Size))
	return output, nil
}

func (b *Builder) packTo(ctx context.Context, final string, build record.Build, sets []compiled, launcher string, step *progressStep) (record.Output, error) {
	files := make(map[string]string)
	for _, set := range sets {
		for _, output := range set.Outputs {
			files[output.Path] = set.file(output)
		}
	}
	dir, err := b.temporary("bundle")
	if err != nil {
		return record.Output{}, err
	}
	head, err := os.Open(launcher)
	if err != nil {
		return record.Output{}, err
	}
	defer head.Close()
	file, err := os.OpenFile(filepath.Join(dir, launcherName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return record.Output{}, err
	}
	sum := newBackgroundSum()
	err = bundle.Attach(io.MultiWriter(file, sum), head, build, func(output record.Output) (io.ReadCloser, error) {
		step.Note("%s", output.Path)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := b.frameName(output.SHA256, files[output.Path])
		if _, err := os.Stat(name); err != nil {
			if _, _, err := b.sumAndFrame(files[output.Path]); err != nil {
				return nil, err
			}
		}
		return os.Open(name)
	})
	digest := sum.finish()
	info, statErr := file.Stat()
	if err := errors.Join(err, statErr, file.Close()); err != nil {
		return record.Output{}, err
	}
	output := record.Output{Path: launcherName, Size: info.Size(), SHA256: digest}
	data, err := json.Marshal(output)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "output.json"), data, 0o644)
	}
	if err != nil {
		return record.Output{}, err
	}
	b.made[final] = true
	return output, publish(dir, final)
}

// frameName is where the compressed form of a file is kept, by its content.
func (b *Builder) frameName(sum, file string) string {
	return b.work("frames", filepath.Base(file)+"-"+digestOf(bundle.Format(), sum)[:32])
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
	dir, err := b.temporary("frame")
	if err != nil {
		return "", 0, err
	}
	defer os.Remove(dir)
	frame := filepath.Join(dir, "frame")
	sum := ""
	var group errgroup.Group
	group.Go(func() (err error) {
		sum, _, err = hashFile(file)
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
	return sum, info.Size(), publish(frame, b.frameName(sum, file))
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

// launcher compiles cmd/k3s9p, without a distribution in it.
func (b *Builder) launcher(ctx context.Context, chain record.Toolchain) (string, error) {
	key, err := b.sourcesKey(chain, "go.mod", "go.sum", "cmd", "internal")
	if err != nil {
		return "", err
	}
	final := b.work("out", "launcher-"+key[:16])
	file := filepath.Join(final, launcherName)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	step := b.UI.Step("compile the launcher")
	dir, err := b.temporary("launcher")
	if err == nil {
		_, err = b.run(ctx, command{dir: b.Root, env: b.goEnv(false), args: []string{"go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-tags=grpcnotrace", // which keeps html/template out: a fifth of the launcher
			"-ldflags=-s -w", "-o", filepath.Join(dir, launcherName), "./cmd/k3s9p"}})
	}
	if err == nil {
		err = publish(dir, final)
	}
	if err != nil {
		step.Fail()
		return "", fmt.Errorf("compile the launcher: %w", err)
	}
	step.Done("")
	return file, nil
}

// sourcesKey is the digest of some of this repository's own sources.
func (b *Builder) sourcesKey(chain record.Toolchain, roots ...string) (string, error) {
	parts := []string{outputFormat, chain.Go, chain.Platform}
	for _, root := range roots {
		err := filepath.WalkDir(filepath.Join(b.Root, root), func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			relative, _ := filepath.Rel(b.Root, path)
			parts = append(parts, relative, string(data))
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return digestOf(parts...), nil
}

// pruneAll removes outputs, trees and frames that older builds left.
func (b *Builder) pruneAll(inUse []string) error {
	var err error
	for _, folder := range []string{"src", "mod", "out"} {
		err = errors.Join(err, b.prune(folder, inUse))
	}
	return err
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
	entries, err := os.ReadDir(b.work("frames"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if !slices.Contains(names, entry.Name()) {
			err = errors.Join(err, os.Remove(b.work("frames", entry.Name())))
		}
	}
	return err
}
