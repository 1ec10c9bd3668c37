package builder

import (
	"context"
	"fmt"
	"os"

	"k3s9p/internal/packages"
	"k3s9p/internal/pin"
)

// Plan says what Build would do, and changes nothing in dist/. What the parts of k3s are
// is in its sources: these are fetched, where they can be.
func (b *Builder) Plan(ctx context.Context, distro string) error {
	unlock, err := b.Lock(ctx, b.UI)
	if err != nil {
		return err
	}
	defer unlock()
	selection, err := b.Selection(ctx, distro)
	if err != nil {
		return err
	}
	b.announce(selection)
	needs, err := b.needs(selection.Sets)
	if err != nil {
		return err
	}
	for _, name := range packages.Missing(ctx, needs) {
		fmt.Printf("install  %s (a package of the system)\n", name)
	}
	chain, err := b.Toolchain(ctx, b.Root, pin.CGO(selection.Sets...))
	if err != nil {
		return err
	}
	for _, set := range selection.Sets {
		key, err := outputKey(set, chain)
		if err != nil {
			return err
		}
		if _, ok := readCompiled(b.outputDir(set, key)); ok {
			fmt.Printf("keep     %s %s\n", set.Name, set.Version())
			continue
		}
		for _, series := range set.Sources() {
			tree, err := b.treePath(series)
			if err != nil {
				return err
			}
			if _, err := os.Stat(tree); err != nil && len(series.Patches) > 0 {
				fmt.Printf("patch    %s %s (%d patches)\n", series.Pin.Path, series.Pin.Version, len(series.Patches))
			}
		}
		fmt.Printf("compile  %s %s\n", set.Name, set.Version())
	}
	if selection.Parted != nil {
		fmt.Printf("join     %s %s\n", selection.Parted.Config.Whole.Name, selection.Sets[0].Version())
	}
	return nil
}
