package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"debug/buildinfo"

	"k3s9p/internal/progress"
	"k3s9p/internal/record"
)

type progressStep = progress.Step

// Toolchain asks the go command and, where a set uses cgo, the C compiler for
// their versions.
func (b *Builder) toolchain(ctx context.Context, sets []*Set) (record.Toolchain, error) {
	out, err := b.run(ctx, command{dir: b.Root, env: b.goEnv(false), args: []string{"go", "env", "GOVERSION"}})
	if err != nil {
		return record.Toolchain{}, err
	}
	chain := record.Toolchain{Go: strings.TrimSpace(string(out)), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if slices.ContainsFunc(sets, func(s *Set) bool { return s.Config.CGO }) {
		chain.CC = firstLine(ctx, compiler(), "--version")
	}
	return chain, nil
}

// date is the time that programs report as that of their build, in RFC 3339:
// SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/)
// or the day on which the newest patch of the set was changed.
func (s *Set) date() (string, error) {
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return "", fmt.Errorf("SOURCE_DATE_EPOCH is %q, not a number of seconds", epoch)
		}
		return time.Unix(seconds, 0).UTC().Format(time.RFC3339), nil
	}
	newest := time.Unix(0, 0)
	for _, series := range s.Series {
		for _, p := range series.Patches {
			if p.Header.LastUpdate.After(newest) {
				newest = p.Header.LastUpdate
			}
		}
	}
	return newest.UTC().Format(time.RFC3339), nil
}

// flags are the arguments of go build that the result depends on.
func (s *Set) flags() ([]string, error) {
	date, err := s.date()
	if err != nil {
		return nil, err
	}
	stamps, err := s.stamps(date)
	if err != nil {
		return nil, err
	}
	linker := []string{"-s", "-w"}
	for i := 0; i < len(stamps); i += 2 {
		linker = append(linker, stamps[i], "'"+stamps[i+1]+"'")
	}
	linker = append(linker, s.Config.Linker...)
	flags := []string{"-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=" + strings.Join(linker, " ")}
	if len(s.Config.Tags) > 0 {
		flags = append(flags, "-tags="+strings.Join(s.Config.Tags, ","))
	}
	return flags, nil
}

// outputKey is the digest of all that the programs of a set depend on.
func (b *Builder) outputKey(set *Set, chain record.Toolchain) (string, error) {
	flags, err := set.flags()
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
	for _, program := range set.Config.Programs {
		parts = append(parts, program.Name, program.Package, program.Dir, strings.Join(program.Links, " "))
	}
	sources, err := filepath.Glob(filepath.Join(set.Dir, "*.go"))
	if err != nil {
		return "", err
	}
	for _, name := range sources {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		parts = append(parts, filepath.Base(name), string(data))
	}
	return digestOf(parts...), nil
}

// compiled is a set whose programs exist.
type compiled struct {
	Dir    string     `json:"-"`
	Record record.Set `json:"set"`
	// Outputs are relative to dist/ and to the bundle.
	Outputs []record.Output `json:"outputs"`
}

// file is where a program of the set is kept.
func (c compiled) file(output record.Output) string { return filepath.Join(c.Dir, output.Path) }

// outputDir is where the programs of a set with this key are kept.
func (b *Builder) outputDir(set *Set, key string) string {
	return b.work("out", set.Name+set.Variant+"-"+key[:16])
}

// known returns the programs that were compiled before from the same inputs.
func (b *Builder) known(set *Set, key string) (compiled, bool) {
	dir := b.outputDir(set, key)
	data, err := os.ReadFile(filepath.Join(dir, "set.json"))
	if err != nil {
		return compiled{}, false
	}
	c := compiled{Dir: dir}
	if err := json.Unmarshal(data, &c); err != nil {
		return compiled{}, false
	}
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // prune keeps what was used last
	return c, true
}

// compile builds the programs of a set from its trees.
func (b *Builder) compile(ctx context.Context, set *Set, key string, trees map[string]string) (compiled, error) {
	final := b.outputDir(set, key)
	modfile, err := b.modfileFor(set, filepath.Base(final), trees)
	if err != nil {
		return compiled{}, err
	}
	flags, err := set.flags()
	if err != nil {
		return compiled{}, err
	}
	dir, err := b.temporary("out")
	if err != nil {
		return compiled{}, err
	}
	step := b.UI.Step("%s%s: compile %s", set.Name, set.Variant, set.Version())
	c, err := b.compileTo(ctx, set, modfile, flags, dir, step)
	if err == nil {
		err = publish(dir, final)
	}
	if err != nil {
		step.Fail()
		return compiled{}, err
	}
	c.Dir = final
	b.made[final] = true
	total := int64(0)
	for _, output := range c.Outputs {
		total += output.Size
	}
	step.Done("%d programs, %s", len(set.Config.Programs), progress.Size(total))
	return c, nil
}

func (b *Builder) compileTo(ctx context.Context, set *Set, modfile string, flags []string, dir string, step *progressStep) (compiled, error) {
	if err := b.goBuild(ctx, set, modfile, flags, dir, step); err != nil {
		return compiled{}, err
	}
	c := compiled{Record: record.Set{
		Name: set.Name, Version: set.Version(), CGO: set.Config.CGO, Tags: set.Config.Tags, Flags: flags, Patches: set.patches(),
		Unverified: set.unverified(),
	}}
	modules := make(map[string]record.Module)
	for _, program := range set.Config.Programs {
		name := path.Join(program.Dir, program.Name)
		file := filepath.Join(dir, name)
		sum, size, err := b.sumAndFrame(file)
		if err != nil {
			return compiled{}, err
		}
		c.Outputs = append(c.Outputs, record.Output{Path: name, Size: size, SHA256: sum})
		for _, link := range program.Links {
			c.Outputs = append(c.Outputs, record.Output{Path: path.Join(program.Dir, link), Link: program.Name})
		}
		if err := set.modulesOf(file, modules); err != nil {
			return compiled{}, err
		}
	}
	for _, m := range modules {
		c.Record.Modules = append(c.Record.Modules, m)
	}
	slices.SortFunc(c.Record.Modules, func(a, b record.Module) int { return strings.Compare(a.Path, b.Path) })
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return compiled{}, err
	}
	return c, os.WriteFile(filepath.Join(dir, "set.json"), data, 0o644)
}

// goBuild compiles all programs of a set at once and names them.
func (b *Builder) goBuild(ctx context.Context, set *Set, modfile string, flags []string, dir string, step *progressStep) error {
	args := append([]string{"go", "build", "-v", "-modfile=" + modfile}, flags...)
	args = append(args, "-o", dir+string(filepath.Separator))
	names := make(map[string]string) // as go build calls them
	for _, program := range set.Config.Programs {
		args = append(args, program.Package)
		names[b.executable(set, program.Package)] = path.Join(program.Dir, program.Name)
	}
	packages := 0
	_, err := b.run(ctx, command{
		dir:  set.Dir,
		env:  append(b.offline(set), "TMPDIR="+b.work("tmp", "go")), // the linker's
		args: args,
		line: func(line string) {
			if !strings.Contains(line, " ") {
				packages++
				step.Note("%d packages, %s", packages, line)
			}
		},
	})
	if err != nil {
		return compileError(set, err)
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

// compileError leaves out the package names that go build -v prints.
func compileError(set *Set, err error) error {
	var failed *commandError
	if errors.As(err, &failed) {
		failed.stderr = slices.DeleteFunc(failed.stderr, func(line string) bool { return !strings.Contains(line, " ") })
	}
	return fmt.Errorf("compile build/%s: %w", set.Name, err)
}

// executable is the name that go build gives to the program of a package: the
// last element of its import path that is not a major version.
func (b *Builder) executable(set *Set, pkg string) string {
	if pkg == "." {
		return set.Name
	}
	base := path.Base(pkg)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
		return path.Base(path.Dir(pkg))
	}
	return base
}

// modulesOf reads from an executable which modules it was made of. A patched
// module has no sum there: it gets that of its pin.
func (s *Set) modulesOf(file string, modules map[string]record.Module) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the build information of %s: %w", file, err)
	}
	for _, dep := range info.Deps {
		m := record.Module{Path: dep.Path, Version: dep.Version, Sum: dep.Sum}
		if dep.Replace != nil && dep.Replace.Sum != "" {
			m = record.Module{Path: dep.Replace.Path, Version: dep.Replace.Version, Sum: dep.Replace.Sum}
		}
		if m.Sum == "" {
			m.Sum = s.sumOf(dep.Path)
		}
		modules[m.Path] = m
	}
	return nil
}

// sumOf is the sum of the source that a patched module was made of.
func (s *Set) sumOf(path string) string {
	for _, series := range s.Series {
		if series.Pin.Path == path {
			return series.Pin.Sum
		}
	}
	return s.Pins[path].Sum
}

// unverified lists the modules whose source is not the pinned one.
func (s *Set) unverified() []string {
	var modules []string
	for _, series := range s.Series {
		if series.Local != nil && !series.Local.verified {
			modules = append(modules, series.Pin.Path)
		}
	}
	return modules
}

// patches lists what was applied to the modules of the set.
func (s *Set) patches() []record.Patch {
	var all []record.Patch
	for _, series := range s.Series {
		for _, p := range series.Patches {
			all = append(all, record.Patch{
				Module: series.Pin.Path, Version: series.Pin.Version, Name: p.Name, Digest: p.Digest(),
				Description: p.Header.Description, Forwarded: p.Header.Forwarded, Bug: p.Header.Bug,
			})
		}
	}
	return all
}
