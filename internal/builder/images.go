package builder

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/command"
	"k3s9p/internal/image"
	"k3s9p/internal/record"
)

// PauseImage is the image of the first process of every pod.
const PauseImage = "k3s9p.local/pause:1"

// images makes the container images that a node cannot do without: they are files
// of the distribution as the programs are.
func (b *Builder) images(ctx context.Context, chain record.Toolchain) (Compiled, error) {
	key, err := b.sourcesKey(chain, "go.mod", "go.sum", "cmd/pause", "internal/image")
	if err != nil {
		return Compiled{}, err
	}
	final := b.Work(b.own("out"), "images-"+key[:16])
	if c, ok := readCompiled(final); ok {
		return c, nil
	}
	step := b.UI.Step("images: make %s%s", PauseImage, b.forOther())
	c, err := b.makeImages(ctx, final)
	if err != nil {
		step.Fail()
		return Compiled{}, fmt.Errorf("make image %s: %w", PauseImage, err)
	}
	step.Done("")
	return c, nil
}

func (b *Builder) makeImages(ctx context.Context, final string) (Compiled, error) {
	dir, err := b.Temporary("images")
	if err != nil {
		return Compiled{}, err
	}
	program, archive := filepath.Join(dir, "pause"), filepath.Join(dir, "images", "pause.tar")
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return Compiled{}, err
	}
	flags := []string{"-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=-s -w"}
	args := append(append([]string{"go", "build"}, flags...), "-o", program, "./cmd/pause")
	if _, err := b.Run(ctx, command.Command{Dir: b.Root, Env: b.Env(false), Args: args}); err != nil {
		return Compiled{}, err
	}
	if err := image.Save(archive, PauseImage, program, b.Target()); err != nil {
		return Compiled{}, err
	}
	if err := os.Chmod(archive, 0o755); err != nil { // as all files of dist/
		return Compiled{}, err
	}
	if err := os.Remove(program); err != nil {
		return Compiled{}, err
	}
	sum, size, err := b.sumAndFrame(archive)
	if err != nil {
		return Compiled{}, err
	}
	return Compiled{
		Record:  record.Set{Name: "images", Version: "v1", Flags: flags, Modules: []record.Module{}},
		Outputs: []record.Output{{Path: "images/pause.tar", Size: size, SHA256: sum}},
	}.publish(dir, final)
}
