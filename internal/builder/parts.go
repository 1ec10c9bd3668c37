package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
	"k3s9p/internal/k3s"
	"k3s9p/internal/pin"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// Choose is Selection for who does not hold the lock.
func (b *Builder) Choose(ctx context.Context, distro string) (pin.Selection, error) {
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return pin.Selection{}, err
	}
	defer unlock()
	return b.Selection(ctx, distro)
}

// Selection reads build/ and chooses a distribution; for auto the first one whose modules
// the proxy gives. A set with parts is taken apart, for which modules are fetched: the
// caller holds the lock.
func (b *Builder) Selection(ctx context.Context, distro string) (pin.Selection, error) {
	sets, err := pin.ReadSets(b.Root)
	if err != nil {
		return pin.Selection{}, err
	}
	candidates, err := pin.Select(sets, distro)
	if err != nil {
		return pin.Selection{}, err
	}
	for i, candidate := range candidates {
		selection, err := b.takeApart(ctx, candidate)
		var unavailable *gotool.Unavailable
		switch refused := errors.As(err, &unavailable); {
		case !refused:
			return selection, err
		case i == len(candidates)-1:
			return selection, waysOn(candidate, unavailable)
		}
		candidates[i+1].Why = unavailable.Short()
	}
	return pin.Selection{}, errors.New("no distribution is given to choose from")
}

// waysOn says what can be done where the proxy refuses a module of k3s.
func waysOn(selection pin.Selection, unavailable *gotool.Unavailable) error {
	path, version, _ := strings.Cut(unavailable.Module, " ")
	way := "K3S9P_REPLACE=FILE with a replace line for it"
	for _, set := range selection.Sets {
		if variable := set.SourceVariable(path); variable != "" {
			way = variable + "=DIR with its source at " + version
		}
	}
	return hint.Add(unavailable, "GOPROXY=… with a proxy that serves it; %s; or DISTRO=kubernetes, whose modules are all on the public proxy", way)
}

// takeApart puts the parts of a set in its place; other sets come behind them.
func (b *Builder) takeApart(ctx context.Context, selection pin.Selection) (pin.Selection, error) {
	i := slices.IndexFunc(selection.Sets, func(s *pin.Set) bool { return len(s.Config.Parts) > 0 })
	replacements, err := pin.ReadReplacements()
	if err != nil {
		return selection, err
	}
	if i < 0 {
		return selection, replacements.Unused(nil)
	}
	set := selection.Sets[i]
	trees, err := b.Sources(ctx, set)
	if err != nil {
		return selection, err
	}
	upstream, err := b.readUpstream(set, trees)
	if err != nil {
		return selection, err
	}
	taken := selection
	taken.Parted, taken.Sets = set, nil
	others := slices.Delete(slices.Clone(selection.Sets), i, i+1)
	var replaced []string
	for _, part := range set.Config.Parts {
		derived, err := b.layPart(ctx, set, part, trees, upstream, replacements)
		if err != nil {
			return selection, err
		}
		replaced = append(replaced, derived.Replaced...)
		taken.Sets = append(taken.Sets, derived)
	}
	if err := replacements.Unused(replaced); err != nil {
		return selection, err
	}
	stamp := pin.PatchDigest(taken.Sets...)
	for i, part := range taken.Sets {
		if part.Main.Pin.Imported() == set.Config.Module {
			taken.Sets[i] = part.Called(upstream.Version, stamp)
		}
		if _, err := b.fetch(ctx, part); err != nil {
			return selection, err
		}
	}
	taken.Sets = append(taken.Sets, others...)
	return taken, nil
}

// readUpstream reads what the sources of k3s say, and compares it with the pins.
func (b *Builder) readUpstream(set *pin.Set, trees map[string]string) (k3s.Upstream, error) {
	main, dir := set.Pins[set.Config.Module], trees[set.Config.Module]
	upstream, err := k3s.Read(dir)
	if err != nil {
		return upstream, fmt.Errorf("%s %s: %w", main.Path, main.Version, err)
	}
	wanted, err := upstream.Wanted(dir)
	if err != nil {
		return upstream, fmt.Errorf("%s %s: %w", main.Path, main.Version, err)
	}
	for path, module := range wanted {
		if pin := set.Pins[path]; (k3s.Module{Path: pin.Path, Version: pin.Version}) != module {
			return upstream, hint.Add(fmt.Errorf("build/%s/go.mod pins %s %s, and %s %s is made with %s %s", set.Name, pin.Path, pin.Version, main.Path, main.Version, module.Path, module.Version),
				"the pins of build/%s follow those of k3s: bring go.mod and go.sum to the same version", set.Name)
		}
	}
	return upstream, nil
}

// layPart makes the tree in which a part is compiled, and the part as a set.
func (b *Builder) layPart(ctx context.Context, set *pin.Set, part pin.Part, trees map[string]string, upstream k3s.Upstream, replacements pin.Replacements) (*pin.Set, error) {
	dir := trees[part.Main]
	var err error
	switch {
	case part.Main == set.Config.Module:
		dir, err = b.layTree(dir, part.Name, deployed(upstream), func(tree string) error { return layManifests(tree, deployed(upstream)) })
	case part.Graft != nil:
		from := trees[part.Graft.Module]
		dir, err = b.layTree(dir, part.Name, []string{filepath.Base(from), part.Graft.Dir, part.Graft.Package}, func(tree string) error { return graft(from, tree, part.Graft) })
	}
	if err != nil {
		return nil, fmt.Errorf("lay out the sources of %s: %w", part.Name, err)
	}
	for i, program := range part.Programs {
		switch program.Name {
		case "k3s":
			part.Programs[i].Links = upstream.ServerLinks
		case "cni":
			part.Programs[i].Links = upstream.CNILinks
		}
	}
	dir, replaced, err := b.replace(ctx, dir, part, replacements)
	if err != nil {
		return nil, fmt.Errorf("replace modules of %s: %w", part.Name, err)
	}
	derived, err := set.Derive(part, dir, upstream.Names)
	if err != nil {
		return nil, err
	}
	return derived.With(replaced), nil
}

// replace makes a tree with the lines of K3S9P_REPLACE in its go.mod. What that changes
// in the versions of other modules and adds to go.sum is what the go command finds, and
// checks as it is told to by GOSUMDB: this is not the pinned build.
func (b *Builder) replace(ctx context.Context, dir string, part pin.Part, replacements pin.Replacements) (string, []string, error) {
	before, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil || replacements.Empty() {
		return dir, nil, err
	}
	goMod, replaced, err := replacements.In(before)
	if err != nil || len(replaced) == 0 {
		return dir, nil, err
	}
	dir, err = b.layTree(dir, part.Name+"-replaced", []string{string(goMod)}, func(tree string) error {
		goSum, err := os.ReadFile(filepath.Join(tree, "go.sum"))
		if err != nil {
			return err
		}
		for name, data := range map[string][]byte{"go.mod": goMod, "go.sum": goSum} { // not through the links
			if err := errors.Join(os.Remove(filepath.Join(tree, name)), os.WriteFile(filepath.Join(tree, name), data, 0o644)); err != nil {
				return err
			}
		}
		step := b.UI.Step("%s: replace %d modules", part.Name, len(replaced))
		args := append([]string{"go", "list", "-mod=mod", "-tags=" + strings.Join(part.Tags, ","), "-deps"}, packagesOf(part.Programs)...)
		if _, err := b.Run(ctx, command.Command{Dir: tree, Env: b.Env(part.CGO), Args: args, Noise: func(line string) bool { return strings.HasPrefix(line, downloading) }}); err != nil {
			step.Fail()
			return gotool.ModuleError(part.Main+" with the lines of "+replacements.File, "", strings.Join(command.Stderr(err), "\n"))
		}
		step.Done("")
		return nil
	})
	return dir, replaced, err
}

func packagesOf(programs []pin.Program) []string {
	var packages []string
	for _, program := range programs {
		packages = append(packages, program.Package)
	}
	return packages
}

// layTree makes a tree of another one with changes, which are named by what they depend
// on.
func (b *Builder) layTree(base, name string, on []string, change func(tree string) error) (string, error) {
	module := filepath.Base(base)[:strings.LastIndexByte(filepath.Base(base), '-')]
	final := b.Work("src", module+"+"+name+"-"+digest.Of(append([]string{pin.TreeFormat, filepath.Base(base)}, on...)...)[:12])
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tree, err := b.Temporary("tree")
	if err != nil {
		return "", err
	}
	if err := errors.Join(LinkTree(base, tree), os.Chmod(tree, 0o755)); err != nil {
		return "", err
	}
	if err := change(tree); err != nil {
		return "", err
	}
	return final, workdir.Publish(tree, final)
}

// deployed are the manifests that the server gets: those that want charts to be embedded
// are left out with the charts, or it would try to install them for ever.
func deployed(upstream k3s.Upstream) []string {
	return slices.DeleteFunc(slices.Clone(upstream.Manifests), func(name string) bool { return len(upstream.Charts[name]) > 0 })
}

// layManifests puts manifests where the server embeds them, as scripts/build does.
func layManifests(tree string, names []string) error {
	for _, name := range names {
		target := filepath.Join(tree, k3s.ManifestsEmbed, name)
		err := os.MkdirAll(filepath.Dir(target), 0o755)
		if err == nil {
			err = os.Link(filepath.Join(tree, k3s.ManifestsDir, name), target)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var (
	packageMain = regexp.MustCompile(`(?m)^package main$`)
	funcMain    = regexp.MustCompile(`(?m)^func main\(\) \{$`)
)

// graft makes a package of a program: as scripts/build does with the flannel plugin.
func graft(from, tree string, g *pin.Graft) error {
	into := filepath.Join(tree, g.Dir)
	files, err := filepath.Glob(filepath.Join(from, "*.go"))
	if err != nil {
		return err
	}
	if err := errors.Join(rmtree.Tree(into), os.MkdirAll(into, 0o755)); err != nil {
		return err
	}
	mains := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if !packageMain.Match(source) {
			return fmt.Errorf("%s of %s is not in package main: it is no program any more", filepath.Base(file), g.Module)
		}
		mains += len(funcMain.FindAll(source, -1))
		source = packageMain.ReplaceAll(source, []byte("package "+g.Package))
		source = funcMain.ReplaceAll(source, []byte("func Main() {"))
		if err := os.WriteFile(filepath.Join(into, filepath.Base(file)), source, 0o644); err != nil {
			return err
		}
	}
	if mains != 1 {
		return fmt.Errorf("%s has %d functions main, not one", g.Module, mains)
	}
	return nil
}
