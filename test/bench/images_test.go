package bench

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"k3s9p/internal/blocker"
	"k3s9p/internal/proof/contract"
	"k3s9p/test/cluster"
	"k3s9p/test/gvisor"
)

// The image that is unpacked: 300 MB, in ten layers.
const (
	imageName    = "k3s9p.local/large:1"
	largeArchive = "/root/large.tar" // in the sandbox
	layers       = 10
	filesInLayer = 300
	bytesOfFile  = 100_000
	largePods    = 3 // that are started of it
)

// TestImages compares the two ways to keep images where overlayfs does not work on the
// disk: copies on a disk with room for them, and a tmpfs where the disk has less. What
// is chosen is what the product chooses there.
func TestImages(t *testing.T) {
	gvisor.Require(t)
	bench := gvisor.Bench()
	if bench.Rounds == 0 {
		t.Skip("go tool mage bench runs this")
	}
	archive := filepath.Join(t.TempDir(), "large.tar")
	if err := writeImage(archive); err != nil {
		t.Fatal(err)
	}
	var results contract.ImageResults
	for round := range bench.Rounds {
		for _, of := range []struct {
			name  string
			left  int // GiB, of a disk of 20
			tmpfs bool
			into  *contract.ImageFigures
		}{{"native", 15, false, &results.Native}, {"tmpfs", 5, true, &results.Tmpfs}} {
			t.Run(fmt.Sprintf("round %d of %d, %s", round+1, bench.Rounds, of.name), func(t *testing.T) {
				c := cluster.Start(t, gvisor.Options{DiskGiB: 20, AvailableMiB: of.left << 10, Files: map[string]string{largeArchive: archive}})
				var plan blocker.Plan
				c.Ask(&plan, "check")
				chosen := plan.Settings.Containerd
				if chosen.Tmpfs > 0 != of.tmpfs {
					t.Fatalf("images are kept by %s, in a tmpfs of %d bytes", chosen.Snapshotter, chosen.Tmpfs)
				}
				measureImages(t, c, chosen.Snapshotter, of.into)
			})
		}
	}
	record(t, results)
}

func measureImages(t *testing.T, c *cluster.Cluster, snapshotter string, into *contract.ImageFigures) {
	c.Up()
	before, memory := used(t, c), memoryOf(c.Processes()).Own
	took := func(of *[]float64, args ...string) {
		t.Helper()
		start := time.Now()
		if output, err := c.Try(5*time.Minute, append([]string{cluster.Program}, args...)...); err != nil {
			t.Fatalf("k3s9p %v: %v\n%s", args, err, output)
		}
		*of = append(*of, time.Since(start).Seconds())
	}
	took(&into.Import, "ctr", "images", "import", "--local", "--snapshotter="+snapshotter, largeArchive)
	into.ImageBytes = append(into.ImageBytes, float64(used(t, c)-before))
	for i := range largePods {
		pod := fmt.Sprintf("large-%d", i)
		c.Kubectl("run", pod, "--image="+imageName, "--image-pull-policy=Never")
		took(&into.Start, "kubectl", "wait", "--for=condition=ready", "pod/"+pod, "--timeout=3m")
	}
	into.AllBytes = append(into.AllBytes, float64(used(t, c)-before))
	into.Memory = append(into.Memory, float64(memoryOf(c.Processes()).Own-memory))
	t.Logf("%+v", *into)
	c.Down()
}

// used is how many bytes of the filesystem of images are.
func used(t *testing.T, c *cluster.Cluster) int64 {
	t.Helper()
	c.Must("sync")
	var bytes int64
	output := c.Must("sh", "-c", "nsenter --mount=/proc/$(pgrep -o -x containerd)/ns/mnt df --block-size=1 --output=used "+cluster.Data+"/containerd | tail -1")
	if _, err := fmt.Sscan(output, &bytes); err != nil {
		t.Fatalf("read df: %v: %s", err, output)
	}
	return bytes
}

// writeImage adds layers of what cannot be compressed to the image that pods run.
func writeImage(archive string) error {
	image, err := tarball.ImageFromPath(gvisor.Program(contract.WebImage), nil)
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{})
	for i := range layers {
		layer, err := randomLayer(random, fmt.Sprintf("layer-%d", i))
		if err == nil {
			image, err = mutate.AppendLayers(image, layer)
		}
		if err != nil {
			return err
		}
	}
	ref, err := name.NewTag(imageName)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(archive, ref, image)
}

func randomLayer(random io.Reader, dir string) (v1.Layer, error) {
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	for i := range filesInLayer {
		err := archive.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/%d", dir, i), Mode: 0o644, Size: bytesOfFile, Typeflag: tar.TypeReg})
		if err == nil {
			_, err = io.CopyN(archive, random, bytesOfFile)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	data := layer.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
}
