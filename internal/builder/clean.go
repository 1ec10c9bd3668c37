package builder

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"k3s9p/internal/gotool"
	"k3s9p/internal/pin"
	"k3s9p/internal/rmtree"
)

// Clean removes .work, except for the edit trees, and what Build wrote to dist/.
func (b *Builder) Clean(ctx context.Context) error {
	if _, err := os.Stat(b.Work()); err == nil {
		unlock, err := b.Lock(ctx, b.UI)
		if err != nil {
			return err
		}
		defer unlock()
		for _, directory := range []string{"src", "stock", "mod", "root", "inputs", "tmp"} {
			if err := rmtree.Tree(b.Work(directory)); err != nil {
				return err
			}
		}
	}
	sets, err := pin.ReadSets(b.Root) // without them some empty directories stay
	for _, arch := range append(gotool.Architectures(), b.Target()) {
		other, err := b.For(arch)
		if err != nil {
			return err
		}
		if err := other.cleanOwn(sets); err != nil {
			return err
		}
	}
	fmt.Println("what was built is removed; edit trees and reports stay")
	return err
}

// cleanOwn removes what was made for this architecture.
func (b *Builder) cleanOwn(sets []*pin.Set) error {
	for _, directory := range []string{"out", "frames"} {
		if err := rmtree.Tree(b.Work(b.own(directory))); err != nil {
			return err
		}
	}
	if _, err := b.removeStale(nil); err != nil {
		return err
	}
	for _, set := range sets {
		for _, program := range set.Config.Programs {
			for _, link := range program.Links {
				_ = os.Remove(b.Dist(program.Dir, link))
			}
			_ = os.Remove(b.Dist(program.Dir)) // if it is empty
		}
	}
	_ = os.Remove(b.Dist("images"))
	_ = os.Remove(b.Dist(SumsName))
	_ = os.Remove(b.Dist())
	_ = os.Remove(filepath.Join(b.Root, "dist"))
	return nil
}
