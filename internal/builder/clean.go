package builder

import (
	"context"
	"fmt"
	"os"

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
		for _, directory := range []string{"src", "stock", "mod", "out", "frames", "root", "inputs", "tmp"} {
			if err := rmtree.Tree(b.Work(directory)); err != nil {
				return err
			}
		}
	}
	if _, err := b.removeStale(nil); err != nil {
		return err
	}
	defer fmt.Println("what was built is removed; edit trees and reports stay")
	sets, err := pin.ReadSets(b.Root)
	if err != nil {
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
	_ = os.Remove(b.Dist(SumsName))
	_ = os.Remove(b.Dist())
	return nil
}
