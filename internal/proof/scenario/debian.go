package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sigs.k8s.io/yaml"

	"k3s9p/internal/builder"
	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/hint"
	"k3s9p/internal/packages"
	"k3s9p/internal/workdir"
)

// debian is the recipe of a root: test/gvisor/debian.yaml, test/qemu/debian.yaml.
type debian struct {
	Suite    string   `json:"suite"`
	Packages []string `json:"packages"`
	// Modules are the directories of a kernel's modules, and single ones (.ko), that are
	// kept, if a kernel is among the packages.
	Modules []string `json:"modules"`
}

// rootFormat is part of the digest of the recipe.
const rootFormat = "root 2"

// debianNeeds are what makes a Debian root: its packages are checked against the
// signatures of the archive, whose keys are a package of their own.
var debianNeeds = []packages.Need{
	{Package: "mmdebstrap", Command: "mmdebstrap"},
	{Package: "debian-archive-keyring", File: "/usr/share/keyrings/debian-archive-keyring.gpg"},
	{Package: "e2fsprogs", Command: "mkfs.ext4"},
}

// debianRoot makes the archive of the root that a directory of test/ has the recipe of,
// or finds it made from the same recipe. Its name has the digest of the recipe and that
// of the archive, which is checked each time: what tests get is what was made.
func debianRoot(ctx context.Context, b *builder.Builder, of string) (string, error) {
	recipe := filepath.Join(b.Root, "test", of, "debian.yaml")
	data, err := os.ReadFile(recipe)
	if err != nil {
		return "", err
	}
	var d debian
	if err := yaml.UnmarshalStrict(data, &d); err != nil {
		return "", fmt.Errorf("%s: %w", recipe, err)
	}
	if d.Suite == "" || len(d.Packages) == 0 {
		return "", fmt.Errorf("%s: it names no suite or no packages", recipe)
	}
	prefix := of + "-" + digest.Of(rootFormat, string(data))[:16] + "-"
	archive, err := cachedRoot(b, prefix)
	if err != nil || archive != "" {
		return archive, err
	}
	if err := packages.Install(ctx, b.Runner, debianNeeds); err != nil {
		return "", err
	}
	return makeRoot(ctx, b, d, of, prefix)
}

// cachedRoot finds an archive of this recipe that is what its name says.
func cachedRoot(b *builder.Builder, prefix string) (string, error) {
	archives, err := filepath.Glob(b.Work("root", prefix+"*.tar"))
	if err != nil {
		return "", err
	}
	for _, archive := range archives {
		sum, _, err := digest.File(archive)
		if err != nil {
			return "", err
		}
		if prefix+sum+".tar" == filepath.Base(archive) {
			return archive, nil
		}
		b.UI.Say("%s is not what was made: making it again", archive)
		if err := os.Remove(archive); err != nil {
			return "", err
		}
	}
	return "", nil
}

// makeRoot unpacks the packages, without running any of their scripts.
func makeRoot(ctx context.Context, b *builder.Builder, d debian, of, prefix string) (string, error) {
	step := b.UI.Step("make a Debian root (%s, %d packages)", d.Suite, len(d.Packages))
	dir, err := b.Temporary("root")
	if err != nil {
		step.Fail()
		return "", err
	}
	made := filepath.Join(dir, "root.tar")
	args := []string{"mmdebstrap", "--variant=extract", "--mode=root", "--format=tar", "--include=" + strings.Join(d.Packages, ",")}
	for _, useless := range []string{"man", "doc", "locale", "info", "lintian", "bash-completion"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+useless+"/*")
	}
	if len(d.Modules) > 0 {
		args = append(args, "--dpkgopt=path-exclude=/lib/modules/*/kernel/*", `--extract-hook=chroot "$1" /sbin/depmod "$(ls "$1/lib/modules")"`)
	}
	for _, kept := range d.Modules {
		if filepath.Ext(kept) != ".ko" {
			kept += "/*"
		}
		args = append(args, "--dpkgopt=path-include=/lib/modules/*/kernel/"+kept)
	}
	// With a constant time the same packages give the same bytes.
	env := append(os.Environ(), "SOURCE_DATE_EPOCH=1", "TMPDIR="+dir, "LC_ALL=C")
	// mmdebstrap mounts the machine's own /dev/shm and more into the root that it
	// makes: in a mount namespace that ends with it, also when it is killed.
	_, err = b.Run(ctx, command.Command{Dir: dir, Env: env, Unshare: syscall.CLONE_NEWNS, Args: append(args, d.Suite, made), Line: func(line string) { step.Note("%s", strings.TrimPrefix(line, "I: ")) }})
	if err != nil {
		step.Fail()
		return "", hint.Add(fmt.Errorf("make a Debian root: %w", err), "it needs an archive of Debian packages that apt can reach; see the sources of apt, and its proxy settings")
	}
	sum, size, err := digest.File(made)
	if err != nil {
		step.Fail()
		return "", err
	}
	final := b.Work("root", prefix+sum+".tar")
	old, err := filepath.Glob(b.Work("root", of+"-*.tar"))
	for _, other := range old {
		err = errors.Join(err, os.Remove(other))
	}
	if err := errors.Join(err, workdir.Publish(made, final)); err != nil {
		step.Fail()
		return "", err
	}
	step.Done("%.0f MB", float64(size)/1e6)
	return final, nil
}
