package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"text/tabwriter"

	"k3s9p/internal/hint"
	"k3s9p/internal/patch"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// pinned is a series with the set that pins its module.
type pinned struct {
	PinnedSeries
	set *Set
}

// allSeries returns the series of all sets, each once.
func (b *Builder) allSeries() ([]pinned, error) {
	sets, err := b.ReadSets()
	if err != nil {
		return nil, err
	}
	var all []pinned
	for _, set := range sets {
		for _, series := range set.Series {
			known := slices.ContainsFunc(all, func(p pinned) bool { return p.Digest == series.Digest })
			if !known {
				all = append(all, pinned{series, set})
			}
		}
	}
	return all, nil
}

// seriesOf finds the series of a module, which may be named by the end of its
// path: cadvisor, plugins, cgroups/v3.
func (b *Builder) seriesOf(module string) (pinned, error) {
	all, err := b.allSeries()
	if err != nil {
		return pinned{}, err
	}
	var found []pinned
	var names []string
	for _, p := range all {
		names = append(names, p.Pin.Path)
		if p.Pin.Path == module {
			return p, nil
		}
		if strings.HasSuffix(p.Pin.Path, "/"+module) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return pinned{}, hint.Add(fmt.Errorf("no patched module is called %q", module), "one of %s", strings.Join(names, ", "))
	default:
		return pinned{}, hint.Add(fmt.Errorf("%d patched modules are called %q", len(found), module), "one of %s", strings.Join(names, ", "))
	}
}

// ListPatches prints all patches, as a table or, with output "json", as records.
func (b *Builder) ListPatches(w io.Writer, output string) error {
	if output != "" && output != "text" && output != "json" {
		return fmt.Errorf("unknown output format %q: it is text or json", output)
	}
	all, err := b.allSeries()
	if err != nil {
		return err
	}
	patches := []record.Patch{}
	for _, p := range all {
		for _, applied := range p.set.patches() {
			if applied.Module == p.Pin.Path {
				patches = append(patches, applied)
			}
		}
	}
	if output == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(patches)
	}
	table := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "MODULE\tVERSION\tPATCH\tFORWARDED\tDESCRIPTION")
	for _, p := range patches {
		number, _, _ := strings.Cut(p.Name, "-")
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", p.Module, p.Version, number, p.Forwarded, p.Description)
	}
	return table.Flush()
}

// VerifyPatches applies every series to its pin, strictly, and reports all that
// do not apply.
func (b *Builder) VerifyPatches(ctx context.Context) (err error) {
	defer func() { err = b.noSpace(err) }()
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := b.allSeries()
	if err != nil {
		return err
	}
	var failures error
	for _, p := range all {
		step := b.UI.Step("%s %s", p.Pin.Path, p.Pin.Version)
		if err := b.verify(ctx, p, step); err != nil {
			step.Fail()
			failures = errors.Join(failures, err)
			continue
		}
		step.Done("%d patches apply", len(p.Patches))
	}
	return failures
}

func (b *Builder) verify(ctx context.Context, p pinned, step *progressStep) error {
	zips, err := b.download(ctx, p.set, step)
	if err != nil {
		return err
	}
	tree, err := b.temporary("verify")
	if err != nil {
		return err
	}
	defer rmtree.Tree(tree)
	stock, err := b.stockTree(p.PinnedSeries, zips[p.Pin.Path])
	if err != nil {
		return err
	}
	if err := linkTree(stock, tree); err != nil {
		return err
	}
	return p.Apply(tree, p.Pin.Path+" "+p.Pin.Version)
}

func (b *Builder) editTree(p pinned) string {
	return b.work("edit", flatten(p.Pin.Path)+"@"+p.Pin.Version)
}

// EditPatches makes a git tree of a patched module, its series as commits.
func (b *Builder) EditPatches(ctx context.Context, module string) (err error) {
	defer func() { err = b.noSpace(err) }()
	if err := needGit(); err != nil {
		return err
	}
	p, err := b.seriesOf(module)
	if err != nil {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	final := b.editTree(p)
	if _, err := os.Stat(final); err == nil {
		if err := patch.Unsaved(ctx, final); err != nil {
			return err
		}
	}
	step := b.UI.Step("check out %s %s with its series", p.Pin.Path, p.Pin.Version)
	err = b.checkout(ctx, p, final, step)
	if err != nil {
		step.Fail()
		return err
	}
	step.Done("%d commits", len(p.Patches))
	fmt.Printf("%s\nnext: change its commits (git rebase --interactive k3s9p-base), then go tool mage patch:save %s\n", final, module)
	return nil
}

func (b *Builder) checkout(ctx context.Context, p pinned, final string, step *progressStep) error {
	zips, err := b.download(ctx, p.set, step)
	if err != nil {
		return err
	}
	tree, err := b.temporary("edit")
	if err != nil {
		return err
	}
	err = p.Checkout(ctx, tree, p.Pin.Path+" "+p.Pin.Version, func(dir string) error {
		if p.Local != nil {
			return p.Local.unpack(p.Pin, dir)
		}
		return extract(p.Pin, zips[p.Pin.Path], dir)
	})
	if err != nil {
		return err
	}
	return publish(tree, final)
}

// SavePatches regenerates a series from the commits of its edit tree.
func (b *Builder) SavePatches(ctx context.Context, module string) error {
	if err := needGit(); err != nil {
		return err
	}
	p, err := b.seriesOf(module)
	if err != nil {
		return err
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	tree := b.editTree(p)
	if _, err := os.Stat(tree); err != nil {
		return hint.Add(fmt.Errorf("there is no edit tree for %s %s", p.Pin.Path, p.Pin.Version), "go tool mage patch:edit %s makes it", module)
	}
	changed, err := p.Save(ctx, tree)
	if err != nil {
		return err
	}
	if len(changed) == 0 {
		fmt.Println("no patch changed")
		return nil
	}
	slices.Sort(changed)
	for _, name := range changed {
		fmt.Println(path.Join(p.Dir, name))
	}
	fmt.Println("next: go tool mage patch:verify build")
	return nil
}

func needGit() error {
	if _, err := exec.LookPath("git"); err != nil {
		return hint.Add(errors.New("git is not installed"), "apt-get install git; the series is edited as a git tree")
	}
	return nil
}
