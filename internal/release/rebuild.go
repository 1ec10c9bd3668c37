package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k3s9p/internal/command"
	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// Recipe is what a release says of how it was made.
type Recipe struct {
	Commit       string // 40 hexadecimal digits
	Snapshot     bool
	Archs        []string
	Distribution string
	URL          string // where releases are published, "" if it does not say
}

// Mage makes a release in a clone of the repository with the targets of that commit.
func Mage(ctx context.Context, clone string, r Recipe) error {
	args := []string{"tool", "mage", "release", "-archs=" + strings.Join(r.Archs, ",")}
	if r.Snapshot {
		args = append(args, "-snapshot")
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = clone
	// What asks for other sources, and for a signature, is not passed on.
	own := func(entry string) bool {
		return strings.HasPrefix(entry, "K3S9P_") || strings.HasPrefix(entry, "DISTRO=")
	}
	cmd.Env = append(slices.DeleteFunc(os.Environ(), own), "DISTRO="+r.Distribution, urlVariable+"="+r.URL)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s in %s: %w", strings.Join(args, " "), clone, err)
	}
	return nil
}

// notRemade are the files that another maintainer, or another machine, makes otherwise.
var notRemade = append([]string{sumsName}, optional...)

// rebuild makes a verified release again, of its commit, and compares all bytes.
func (v *Verifier) rebuild(ctx context.Context, dir string, result *Verified) error {
	recipe, err := recipeOf(dir, *result)
	if err != nil {
		return err
	}
	temporary, err := os.MkdirTemp("", "k3s9p-rebuild-")
	if err != nil {
		return err
	}
	defer rmtree.Tree(temporary)
	clone := filepath.Join(temporary, "repository")
	if err := v.all(
		check{"the commit is that of the tag", func() (string, error) { return v.tag(ctx, result.Version, recipe) }},
		check{"the toolchain is the same", func() (string, error) { return "", v.sameToolchain(ctx, result.builds) }},
		check{"clone the repository", func() (string, error) { return "", cloneAt(ctx, v.Root, clone, recipe.Commit) }},
	); err != nil {
		return err
	}
	if err := v.Again(ctx, clone, recipe); err != nil {
		return fmt.Errorf("make the release of commit %.12s again: %w", recipe.Commit, err)
	}
	return v.all(check{"the same bytes were made again", func() (string, error) {
		n, err := compareReleases(dir, filepath.Join(clone, Dir))
		result.Rebuilt = err == nil
		return fmt.Sprintf("%d files", n), err
	}})
}

// recipeOf reads how a verified release was made.
func recipeOf(dir string, result Verified) (Recipe, error) {
	script, err := os.ReadFile(filepath.Join(dir, installerName))
	if err != nil {
		return Recipe{}, err
	}
	r := Recipe{Commit: result.Commit, Snapshot: Source{Version: result.Version}.Snapshot(), Archs: result.Archs, URL: homeOf(string(script))}
	for _, build := range result.builds {
		r.Distribution = build.Distribution
	}
	if strings.HasSuffix(result.Version, ".dirty") {
		return r, hint.Add(fmt.Errorf("%s was made of files that no commit has: nobody can make it again", result.Version), "verify it without -rebuild")
	}
	return r, nil
}

// tag compares the commit of a release with the tag in this repository. A snapshot has
// no tag.
func (v *Verifier) tag(ctx context.Context, version string, r Recipe) (string, error) {
	name := r.Commit
	if !r.Snapshot {
		name = "refs/tags/" + version
	}
	commit, err := git(ctx, v.Root, "rev-parse", "--verify", "--quiet", name+"^{commit}")
	if err != nil {
		return "", hint.Add(fmt.Errorf("%s is not in %s: %w", strings.TrimPrefix(name, "refs/tags/"), v.Root, err), "git fetch --tags, from a repository that you trust")
	}
	if commit != r.Commit {
		return "", hint.Add(fmt.Errorf("the tag %s is on the commit %.12s, and the release says that it was made of %.12s", version, commit, r.Commit), "do not use it")
	}
	return commit[:12], nil
}

// sameToolchain refuses what would end, after minutes, with other bytes. A cross compiler
// that is not there yet is installed by the build.
func (v *Verifier) sameToolchain(ctx context.Context, builds map[string]record.Build) error {
	var wrong []error
	for arch, build := range builds {
		g := gotool.Go{Runner: command.Runner{UI: v.Progress}, Arch: arch}
		here, err := g.Toolchain(ctx, v.Root, build.Toolchain.CC != "")
		if err != nil {
			return err
		}
		if here.Go != build.Toolchain.Go {
			wrong = append(wrong, fmt.Errorf("the programs for %s were compiled by %s, and here is %s", arch, build.Toolchain.Go, here.Go))
		}
		if here.CC != "" && here.CC != build.Toolchain.CC {
			wrong = append(wrong, fmt.Errorf("the programs for %s were compiled by %q, and here is %q", arch, build.Toolchain.CC, here.CC))
		}
	}
	if len(wrong) > 0 {
		return hint.Add(errors.Join(wrong...), "the same sources give the same bytes with the same compilers only")
	}
	return nil
}

// cloneAt makes a clone with a commit checked out.
func cloneAt(ctx context.Context, root, clone, commit string) error {
	if _, err := git(ctx, root, "clone", "--quiet", "--no-checkout", root, clone); err != nil {
		return err
	}
	_, err := git(ctx, clone, "checkout", "--quiet", "--detach", commit)
	return err
}

// compareReleases names the files that differ, and returns how many do not.
func compareReleases(dir, again string) (int, error) {
	var sums [2]Sums
	for i, dir := range []string{dir, again} {
		names, err := list(dir)
		if err != nil {
			return 0, err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(notRemade, name) })
		if sums[i], err = sumAll(dir, names); err != nil {
			return 0, err
		}
	}
	names := slices.Compact(slices.Sorted(slices.Values(append(sums[0].names(), sums[1].names()...))))
	var wrong []error
	for _, name := range names {
		if sums[0][name] != sums[1][name] {
			wrong = append(wrong, fmt.Errorf("%s has the SHA-256 %q, and made again %q", name, sums[0][name], sums[1][name]))
		}
	}
	if len(wrong) > 0 {
		return 0, hint.Add(errors.Join(wrong...), "it was made of other sources, or with another libc or libseccomp: its provenance names both")
	}
	return len(names), nil
}
