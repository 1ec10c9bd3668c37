package builder

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/image"
	"k3s9p/internal/record"
)

// PauseImage is the image of the first process of every pod.
const PauseImage = "k3s9p.local/pause:1"

// images makes the container images that a node cannot do without: they are files
// of the distribution as the programs are.
func (b *Builder) images(ctx context.Context, chain record.Toolchain) (compiled, error) {
	key, err := b.sourcesKey(chain, "go.mod", "go.sum", "cmd/pause", "internal/image")
	if err != nil {
		return compiled{}, err
	}
	final := b.work("out", "images-"+key[:16])
	if data, err := os.ReadFile(filepath.Join(final, "set.json")); err == nil {
		c := compiled{Dir: final}
		return c, json.Unmarshal(data, &c)
	}
	step := b.UI.Step("images: make %s", PauseImage)
	c, err := b.imagesTo(ctx, final)
	if err != nil {
		step.Fail()
		return compiled{}, fmt.Errorf("make image %s: %w", PauseImage, err)
	}
	step.Done("")
	return c, nil
}

func (b *Builder) imagesTo(ctx context.Context, final string) (compiled, error) {
	dir, err := b.temporary("images")
	if err != nil {
		return compiled{}, err
	}
	program, archive := filepath.Join(dir, "pause"), filepath.Join(dir, "images", "pause.tar")
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return compiled{}, err
	}
	flags := []string{"-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=-s -w"}
	args := append(append([]string{"go", "build"}, flags...), "-o", program, "./cmd/pause")
	if _, err := b.run(ctx, command{dir: b.Root, env: b.goEnv(false), args: args}); err != nil {
		return compiled{}, err
	}
	if err := image.Save(archive, PauseImage, program); err != nil {
		return compiled{}, err
	}
	if err := os.Chmod(archive, 0o755); err != nil { // as all files of dist/
		return compiled{}, err
	}
	sum, size, err := b.sumAndFrame(archive)
	if err != nil {
		return compiled{}, err
	}
	c := compiled{
		Record:  record.Set{Name: "images", Version: "v1", Flags: flags, Modules: []record.Module{}},
		Outputs: []record.Output{{Path: "images/pause.tar", Size: size, SHA256: sum}},
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "set.json"), data, 0o644)
	}
	if err == nil {
		err = os.Remove(program)
	}
	if err == nil {
		err = publish(dir, final)
	}
	c.Dir = final
	b.made[final] = true
	return c, err
}
