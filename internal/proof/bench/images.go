package bench

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"k3s9p/internal/builder"
	"k3s9p/internal/proof/contract"
)

// withoutOverlay is a gVisor whose overlayfs does not work on 9p.
const withoutOverlay = "202509"

// images measures the two ways to keep images where overlayfs does not work on the disk.
// It decides nothing, and so has no limits: package blocker states what follows from it.
func images(ctx context.Context, b *builder.Builder, times int) error {
	_, all, err := inSandboxes[contract.ImageResults](ctx, b, "TestImages", withoutOverlay, times)
	if err != nil {
		return err
	}
	fmt.Println(imageTable(all[0]))
	return nil
}

// imageTable has a column for each way, and one for how often the first costs what the
// second does.
func imageTable(r contract.ImageResults) string {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "300 MB in ten layers\tnative, on 9p\toverlayfs, in a tmpfs\t")
	seconds := func(name string, native, tmpfs []float64) {
		a, b := median(native), median(tmpfs)
		fmt.Fprintf(table, "%s\t%.1f s\t%.1f s\t%.1f ×\n", name, a, b, a/b)
	}
	seconds("import", r.Native.Import, r.Tmpfs.Import)
	seconds("start of a pod", r.Native.Start, r.Tmpfs.Start)
	size := func(name string, native, tmpfs []float64) {
		fmt.Fprintf(table, "%s\t%.0f MB\t%.0f MB\t\n", name, median(native)/1e6, median(tmpfs)/1e6)
	}
	size("space of the image", r.Native.ImageBytes, r.Tmpfs.ImageBytes)
	size("space with three containers", r.Native.AllBytes, r.Tmpfs.AllBytes)
	size("memory of the host with them", r.Native.Memory, r.Tmpfs.Memory)
	_ = table.Flush()
	return strings.TrimRight(text.String(), "\n")
}
