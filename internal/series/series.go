// Package series is what maintainers do with the series of patches: list them, check
// that they apply, edit them as commits, and save them again.
package series

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"k3s9p/internal/builder"
	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
	"k3s9p/internal/patch"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// pinned is a series with the set that pins its module.
type pinned struct {
	pin.PinnedSeries
	set *pin.Set
}

// allSeries returns the series of all sets, each once.
func allSeries(root string) ([]pinned, error) {
	sets, err := pin.ReadSets(root)
	if err != nil {
		return nil, err
	}
	var all []pinned
	for _, set := range sets {
		for _, series := range set.Series {
			if series.Dir == "" { // nothing is patched
				continue
			}
			seen := slices.ContainsFunc(all, func(p pinned) bool { return p.Digest == series.Digest })
			if !seen {
				all = append(all, pinned{series, set})
			}
		}
	}
	return all, nil
}

// find finds the series of a module, which may be named by the end of its
// path: cadvisor, plugins, cgroups/v3. A fork that a series applies to as well is named in
// full.
func find(root, module string) (pinned, error) {
	all, err := allSeries(root)
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
		if strings.HasSuffix(p.Pin.Path, "/"+module) && p.MadeFor(p.Pin.Path, p.Pin.Version) {
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

// List prints all patches, as a table or, with output "json", as records.
func List(b *builder.Builder, w io.Writer, output string) error {
	if output != "" && output != "text" && output != "json" {
		return fmt.Errorf("unknown output format %q: it is text or json", output)
	}
	all, err := allSeries(b.Root)
	if err != nil {
		return err
	}
	patches := []record.Patch{}
	for _, p := range all {
		for _, applied := range p.set.Patches() {
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

// Verify applies every series, strictly, to its pins and to the other versions that it
// names, and reports all that do not apply. What the proxy does not give is skipped,
// except for the versions that series were made for.
func Verify(ctx context.Context, b *builder.Builder) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := allSeries(b.Root)
	if err != nil {
		return err
	}
	further, err := furtherTargets(b.Root, all)
	if err != nil {
		return err
	}
	var failures error
	for _, p := range append(all, further...) {
		step := b.UI.Step("%s %s", p.Pin.Path, p.Pin.Version)
		moved, err := p.verify(ctx, b, step)
		var unavailable *gotool.Unavailable
		switch {
		case err == nil:
			step.Done("%d patches apply%s", len(p.Patches), builder.MovedHunks(moved))
		case errors.As(err, &unavailable) && !p.MadeFor(p.Pin.Path, p.Pin.Version):
			step.Skip("%s", unavailable.Short())
		default:
			step.Fail()
			failures = errors.Join(failures, err)
		}
	}
	return failures
}

// furtherTargets are the modules and versions that series name and no set pins.
func furtherTargets(root string, known []pinned) ([]pinned, error) {
	all, err := patch.ReadAll(filepath.Join(root, "patches"), filepath.Join(root, "overlay"))
	if err != nil {
		return nil, err
	}
	var further []pinned
	for _, s := range all {
		for _, target := range s.Modules {
			for _, version := range target.Versions {
				if !slices.ContainsFunc(known, func(p pinned) bool { return p.Pin.Path == target.Path && p.Pin.Version == version }) {
					further = append(further, pinned{PinnedSeries: pin.PinnedSeries{Series: s, Pin: pin.Pin{Path: target.Path, Version: version}}})
				}
			}
		}
	}
	return further, nil
}

func (p pinned) verify(ctx context.Context, b *builder.Builder, step *progress.Step) ([]patch.Moved, error) {
	stock, err := p.stock(ctx, b, step)
	if err != nil {
		return nil, err
	}
	tree, err := b.Temporary("verify")
	if err != nil {
		return nil, err
	}
	defer rmtree.Tree(tree)
	if err := builder.LinkTree(stock, tree); err != nil {
		return nil, err
	}
	return p.Apply(tree, p.Pin.Path, p.Pin.Version)
}

// stock is the tree of the module as it is upstream.
func (p pinned) stock(ctx context.Context, b *builder.Builder, step *progress.Step) (string, error) {
	switch {
	case p.Local != nil:
		return b.StockTree(p.PinnedSeries, "")
	case p.set == nil || len(p.set.Config.Parts) > 0: // other modules of k3s may be refused
		zip, sum, err := b.DownloadOne(ctx, p.Pin)
		if err != nil {
			return "", err
		}
		p.Pin.Sum = cmp.Or(p.Pin.Sum, sum)
		return b.StockTree(p.PinnedSeries, zip)
	}
	zips, err := b.Download(ctx, p.set, step)
	if err != nil {
		return "", err
	}
	return b.StockTree(p.PinnedSeries, zips[p.Pin.Path])
}

// editTree is where the git tree of a series is.
func editTree(b *builder.Builder, p pinned) string {
	return b.Work("edit", builder.Flatten(p.Pin.Path)+"@"+p.Pin.Version)
}

// Edit makes a git tree of a patched module, its series as commits.
func Edit(ctx context.Context, b *builder.Builder, module string) error {
	return withSeries(ctx, b, module, func(p pinned) error {
		final := editTree(b, p)
		if _, err := os.Stat(final); err == nil {
			if err := patch.Unsaved(ctx, final); err != nil {
				return err
			}
		}
		step := b.UI.Step("check out %s %s with its series", p.Pin.Path, p.Pin.Version)
		if err := p.checkout(ctx, b, final, step); err != nil {
			step.Fail()
			return err
		}
		step.Done("%d commits", len(p.Patches))
		fmt.Printf("%s\nnext: change its commits (git rebase --interactive k3s9p-base), then go tool mage patch:save %s\n", final, module)
		return nil
	})
}

// withSeries calls f with the series of a module, while nobody else builds.
func withSeries(ctx context.Context, b *builder.Builder, module string, f func(pinned) error) (err error) {
	defer func() { err = b.ExplainNoSpace(err) }()
	if err := needGit(); err != nil {
		return err
	}
	p, err := find(b.Root, module)
	if err != nil {
		return err
	}
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return err
	}
	defer unlock()
	return f(p)
}

func (p pinned) checkout(ctx context.Context, b *builder.Builder, final string, step *progress.Step) error {
	zips, err := b.Download(ctx, p.set, step)
	if err != nil {
		return err
	}
	tree, err := b.Temporary("edit")
	if err != nil {
		return err
	}
	err = p.Checkout(ctx, tree, p.Pin.Path, p.Pin.Version, func(dir string) error {
		return builder.Extract(p.PinnedSeries, zips[p.Pin.Path], dir)
	})
	if err != nil {
		return err
	}
	return workdir.Publish(tree, final)
}

// Save regenerates a series from the commits of its edit tree.
func Save(ctx context.Context, b *builder.Builder, module string) error {
	return withSeries(ctx, b, module, func(p pinned) error {
		tree := editTree(b, p)
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
	})
}

func needGit() error {
	if _, err := exec.LookPath("git"); err != nil {
		return hint.Add(errors.New("git is not installed"), "apt-get install git; the series is edited as a git tree")
	}
	return nil
}
