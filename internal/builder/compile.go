package builder

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/workdir"
)

// outputFormat is part of the digests of outputs: it changes with the code that makes
// them, where that changes the result.
const outputFormat = "output 2"

// outputKey is the digest of all that the programs of a set depend on.
func outputKey(set *pin.Set, chain record.Toolchain) (string, error) {
	flags, err := set.Flags()
	if err != nil {
		return "", err
	}
	parts := []string{outputFormat, chain.Go, chain.Platform, string(set.GoMod), string(set.GoSum), strings.Join(flags, "\n")}
	if set.Config.CGO {
		parts = append(parts, chain.CC, os.Getenv("CC"))
	}
	for _, series := range set.Series {
		parts = append(parts, series.Digest)
	}
	if set.Main != nil {
		parts = append(parts, filepath.Base(set.Dir))
	}
	if len(set.Config.CFlags) > 0 {
		parts = append(parts, strings.Join(set.Config.CFlags, " "))
	}
	for _, program := range set.Config.Programs {
		parts = append(parts, program.Name, program.Package, program.Dir, strings.Join(program.Links, " "))
	}
	own, err := sourcesBelow(set.Dir, ".", func(name string) bool { return strings.HasSuffix(name, ".go") })
	return digest.Of(append(parts, own...)...), err
}

// Compiled is a set whose programs exist.
type Compiled struct {
	Dir    string     `json:"-"`
	Record record.Set `json:"set"`
	// Outputs are relative to dist/ and to the bundle.
	Outputs []record.Output `json:"outputs"`
	// fresh says that this process has made them: their sums need no proof.
	fresh bool
}

// File is where a program of the set is kept.
func (c Compiled) File(output record.Output) string { return filepath.Join(c.Dir, output.Path) }

// compiledName is the file beside the programs that describes them.
const compiledName = "set.json"

// readCompiled returns what is in a directory of .work/out, which is named by the
// digest of its inputs.
func readCompiled(dir string) (Compiled, bool) {
	data, err := os.ReadFile(filepath.Join(dir, compiledName))
	if err != nil {
		return Compiled{}, false
	}
	c := Compiled{Dir: dir}
	if err := json.Unmarshal(data, &c); err != nil {
		return Compiled{}, false
	}
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // prune keeps what was used last
	return c, true
}

// publish moves what was made in a temporary directory to its place in .work/out.
func (c Compiled) publish(dir, final string) (Compiled, error) {
	data, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, compiledName), data, 0o644)
	}
	if err == nil {
		err = workdir.Publish(dir, final)
	}
	c.Dir, c.fresh = final, true
	return c, err
}

// outputDir is where the programs of a set with this key are kept.
func (b *Builder) outputDir(set *pin.Set, key string) string {
	return b.Work(b.own("out"), set.Name+set.Variant+"-"+key[:16])
}

// compile builds the programs of a set from its trees.
func (b *Builder) compile(ctx context.Context, set *pin.Set, key string, trees map[string]string) (Compiled, error) {
	final := b.outputDir(set, key)
	modfile, err := b.Modfile(set, filepath.Base(final), trees)
	if err != nil {
		return Compiled{}, err
	}
	flags, err := set.Flags()
	if err != nil {
		return Compiled{}, err
	}
	dir, err := b.Temporary("out")
	if err != nil {
		return Compiled{}, err
	}
	step := b.UI.Step("%s%s: compile %s%s", set.Name, set.Variant, set.Version(), b.forOther())
	var c Compiled
	err = b.goBuild(ctx, set, append([]string{"-modfile=" + modfile}, flags...), dir, step)
	if err == nil {
		c, err = b.describe(set, flags, dir)
	}
	if err == nil {
		c, err = c.publish(dir, final)
	}
	if err != nil {
		step.Fail()
		return Compiled{}, err
	}
	total := int64(0)
	for _, output := range c.Outputs {
		total += output.Size
	}
	step.Done("%d programs, %s", len(set.Config.Programs), progress.Size(total))
	return c, nil
}

// describe hashes the programs of a set in a directory, and reads what they were made
// of.
func (b *Builder) describe(set *pin.Set, flags []string, dir string) (Compiled, error) {
	c := Compiled{Record: record.Set{
		Name: set.Name, Version: set.Version(), CGO: set.Config.CGO, Tags: set.Config.Tags, Flags: flags, Patches: set.Patches(),
		Unverified: set.Unverified(), Replaced: set.Replaced,
	}}
	modules := make(map[string]record.Module)
	for _, program := range set.Config.Programs {
		name := path.Join(program.Dir, program.Name)
		file := filepath.Join(dir, name)
		sum, size, err := b.sumAndFrame(file)
		if err != nil {
			return Compiled{}, err
		}
		c.Outputs = append(c.Outputs, record.Output{Path: name, Size: size, SHA256: sum})
		for _, link := range program.Links {
			c.Outputs = append(c.Outputs, record.Output{Path: path.Join(program.Dir, link), Link: program.Name})
		}
		if err := addModules(set, file, modules); err != nil {
			return Compiled{}, err
		}
	}
	for _, m := range modules {
		c.Record.Modules = append(c.Record.Modules, m)
	}
	slices.SortFunc(c.Record.Modules, func(a, b record.Module) int { return strings.Compare(a.Path, b.Path) })
	return c, nil
}

// goBuild compiles all programs of a set at once and names them.
func (b *Builder) goBuild(ctx context.Context, set *pin.Set, flags []string, dir string, step *progress.Step) error {
	args := append([]string{"go", "build", "-v"}, flags...)
	args = append(args, "-o", dir+string(filepath.Separator))
	names := make(map[string]string) // as go build calls them
	for _, program := range set.Config.Programs {
		args = append(args, program.Package)
		names[executable(set, program.Package)] = path.Join(program.Dir, program.Name)
	}
	packages := 0
	env := append(b.Offline(set.Config.CGO), "TMPDIR="+b.TempDir) // the linker's
	if len(set.Config.CFlags) > 0 {
		env = append(env, "CGO_CFLAGS=-O2 -g "+strings.Join(set.Config.CFlags, " ")) // go env CGO_CFLAGS has the first two
	}
	_, err := b.Run(ctx, command.Command{
		Dir:  set.Dir,
		Env:  env,
		Args: args,
		Line: func(line string) {
			if isPackage(line) {
				packages++
				step.Note("%d packages, %s", packages, line)
			}
		},
		Noise: isPackage, // of others that are compiled at the same time
	})
	if err != nil {
		return fmt.Errorf("compile %s: %w", set.Place(), err)
	}
	for from, to := range names {
		target := filepath.Join(dir, to)
		err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.Rename(filepath.Join(dir, from), target))
		if err != nil {
			return err
		}
	}
	return nil
}

// isPackage tells the packages that go build -v prints from what it says of them.
func isPackage(line string) bool { return !strings.Contains(line, " ") }

// executable is the name that go build gives to the program of a package: the
// last element of its import path that is not a major version.
func executable(set *pin.Set, pkg string) string {
	if pkg == "." {
		return set.Name
	}
	base := path.Base(pkg)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
		return path.Base(path.Dir(pkg))
	}
	return base
}

// addModules reads from an executable which modules it was made of. A patched
// module has no sum there: it gets that of its pin.
func addModules(set *pin.Set, file string, modules map[string]record.Module) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the build information of %s: %w", file, err)
	}
	deps := info.Deps
	if info.Main.Version != "(devel)" { // upstream's own module: that of build/ has no version
		deps = append(deps, &info.Main)
	}
	for _, dep := range deps {
		m := record.Module{Path: dep.Path, Version: dep.Version, Sum: dep.Sum}
		if dep.Replace != nil && dep.Replace.Sum != "" {
			m = record.Module{Path: dep.Replace.Path, Version: dep.Replace.Version, Sum: dep.Replace.Sum}
		}
		if m.Sum == "" {
			pin := set.PinOf(dep.Path)
			m = record.Module{Path: cmp.Or(pin.Path, m.Path), Version: cmp.Or(pin.Version, m.Version), Sum: pin.Sum}
		}
		modules[m.Path] = m
	}
	if set.Main != nil {
		pin := set.Main.Pin
		modules[pin.Path] = record.Module{Path: pin.Path, Version: pin.Version, Sum: pin.Sum}
	}
	return nil
}
