package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/record"
	"k3s9p/internal/workdir"
)

// LauncherName is the file in dist/ that carries the distribution.
const LauncherName = "k3s9p"

// launcher compiles cmd/k3s9p, without a distribution in it.
func (b *Builder) launcher(ctx context.Context, chain record.Toolchain) (string, error) {
	key, err := b.sourcesKey(chain, "go.mod", "go.sum", "cmd", "internal")
	if err != nil {
		return "", err
	}
	final := b.Work(b.own("out"), "launcher-"+key[:16])
	file := filepath.Join(final, LauncherName)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	step := b.UI.Step("compile the launcher%s", b.forOther())
	dir, err := b.Temporary("launcher")
	if err == nil {
		// grpcnotrace keeps html/template out: a fifth of the launcher.
		_, err = b.Run(ctx, command.Command{Dir: b.Root, Env: b.Env(false), Args: []string{"go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-tags=grpcnotrace",
			"-ldflags=-s -w", "-o", filepath.Join(dir, LauncherName), "./cmd/k3s9p"}})
	}
	if err == nil {
		err = workdir.Publish(dir, final)
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
		own, err := sourcesBelow(b.Root, root, func(string) bool { return true })
		if err != nil {
			return "", err
		}
		parts = append(parts, own...)
	}
	return digest.Of(parts...), nil
}

// sourcesBelow returns the names and the contents, in turn, of the files in a directory of
// base, or below it, whose names are wanted; tests are not.
func sourcesBelow(base, root string, wanted func(name string) bool) (parts []string, err error) {
	err = filepath.WalkDir(filepath.Join(base, root), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") || !wanted(entry.Name()) {
			return err
		}
		data, err := os.ReadFile(path)
		relative, _ := filepath.Rel(base, path)
		parts = append(parts, relative, string(data))
		return err
	})
	return parts, err
}
