package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/crypto/ssh"

	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
	"k3s9p/internal/workdir"
)

// Dir is where a release is made, relative to the repository.
const Dir = "dist/release"

// launcherPath is the launcher in dist/, with all programs in it.
const launcherPath = "k3s9p"

// Maker makes a release of what is in dist/.
type Maker struct {
	Root     string // the repository
	Progress *progress.Printer
	Getenv   func(string) string
	source   Source
	signers  Signers
	key      ssh.Signer // nil if the release is not signed
}

// Check reads the state of the repository and the maintainer's key, before anything
// is built: most of what can be wrong is known then.
func (m *Maker) Check(ctx context.Context) error { return m.prepare(ctx, clean) }

// CheckSnapshot does the same for a release that is not to be published, of a
// repository in any state.
func (m *Maker) CheckSnapshot(ctx context.Context) error { return m.prepare(ctx, snapshot) }

func (m *Maker) prepare(ctx context.Context, stateOf func(context.Context, string) (Source, error)) error {
	var err error
	if m.source, err = stateOf(ctx, m.Root); err != nil {
		return err
	}
	if m.signers, err = readSigners(m.Root); err != nil {
		return err
	}
	if m.key, err = keyOf(m.Getenv); err != nil || m.key == nil {
		return err
	}
	_, err = sign(nil, m.key, m.signers)
	return err
}

// readSigners reads the list in the repository.
func readSigners(root string) (Signers, error) {
	data, err := os.ReadFile(filepath.Join(root, signersName))
	if err != nil {
		return nil, fmt.Errorf("read who may sign releases: %w", err)
	}
	return ReadSigners(data)
}

// Make makes the release of distributions, each what the builder has made for one
// architecture. The release in dist/release/ is the old one or the new one at any moment.
func (m *Maker) Make(ctx context.Context, dists ...string) error {
	final := filepath.Join(m.Root, Dir)
	key, err := m.inputs(dists)
	if err != nil {
		return err
	}
	if m.made(final, key) {
		m.conclude("up to date")
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(final), ".release-")
	if err != nil {
		return err
	}
	defer rmtree.Tree(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var all []component
	licences := make(map[string]licence)
	for _, dist := range dists {
		components, err := m.makeFor(ctx, dist, dir, licences)
		if err != nil {
			return err
		}
		all = append(all, components...)
	}
	if err := m.makeCommon(dir, dists[0], all, licences); err != nil {
		return err
	}
	if err := m.seal(dir); err != nil {
		return err
	}
	if err := workdir.Publish(dir, final); err != nil {
		return err
	}
	m.conclude("made")
	return m.remember(final, key)
}

// makeFor makes the files for one architecture, adds to the licences, and returns what
// the programs are linked from.
func (m *Maker) makeFor(ctx context.Context, dist, dir string, licences map[string]licence) ([]component, error) {
	d, err := readDistribution(dist)
	if err != nil {
		return nil, err
	}
	if modules := d.unverified(); len(modules) > 0 && !m.source.Snapshot() {
		return nil, hint.Add(fmt.Errorf("%s was not made from the pinned source of %s", dist, strings.Join(modules, ", ")), "build without K3S9P_UNVERIFIED and K3S9P_REPLACE; -snapshot makes a release that is not to be published")
	}
	step := m.Progress.Step("release %s for %s", m.source.Version, d.arch)
	components, err := m.makeArch(ctx, d, dir, licences, step)
	if err != nil {
		step.Fail()
		return nil, fmt.Errorf("make the release for %s: %w", d.arch, err)
	}
	step.Done("%d programs of %d modules", len(d.build.Outputs), len(components))
	return components, nil
}

func (m *Maker) makeArch(ctx context.Context, d distribution, dir string, licences map[string]licence, step *progress.Step) ([]component, error) {
	step.Note("program")
	program := filepath.Join(dir, programName(d.arch))
	var err error
	if d.build, err = m.writeProgram(filepath.Join(d.dir, launcherPath), program); err != nil {
		return nil, err
	}
	sum, err := sumFile(program)
	if err != nil {
		return nil, err
	}
	step.Note("licences")
	programs, err := d.programs(program, sum)
	if err != nil {
		return nil, err
	}
	for i := range programs {
		if err := programs[i].addLibraries(ctx, d.arch); err != nil {
			return nil, err
		}
	}
	components := allComponents(programs)
	if err := m.addLicences(ctx, components, licences); err != nil {
		return nil, err
	}
	step.Note("image")
	if err := writeImage(filepath.Join(dir, imageName(d.arch)), program, m.source, d.arch); err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	step.Note("SBOM and provenance")
	bill, err := sbom(m.source, d.arch, sum, programs, licences)
	if err != nil {
		return nil, err
	}
	if _, err := parseSBOM(bill); err != nil {
		return nil, fmt.Errorf("the SBOM is not valid: %w", err)
	}
	subjects, err := sumAll(dir, []string{programName(d.arch), imageName(d.arch)})
	if err != nil {
		return nil, err
	}
	statement, err := provenance(m.source, d.arch, subjects, d.build, components)
	if err != nil {
		return nil, err
	}
	return components, errors.Join(write(dir, sbomName(d.arch), bill), write(dir, provenanceName(d.arch), statement))
}

func (m *Maker) addLicences(ctx context.Context, components []component, licences map[string]licence) error {
	missing := slices.DeleteFunc(slices.Clone(components), func(c component) bool { _, ok := licences[c.purl]; return ok })
	found, err := licencesOf(ctx, m.Root, missing)
	for purl, l := range found {
		licences[purl] = l
	}
	return err
}

// makeCommon makes the files that are for all architectures.
func (m *Maker) makeCommon(dir, dist string, components []component, licences map[string]licence) error {
	slices.SortFunc(components, func(a, b component) int { return strings.Compare(a.purl, b.purl) })
	components = slices.CompactFunc(components, func(a, b component) bool { return a.purl == b.purl })
	script, err := install(m.source, m.Getenv(urlVariable), m.signers)
	if err != nil {
		return err
	}
	images, err := imageList(dist)
	if err != nil {
		return err
	}
	err = errors.Join(write(dir, installerName, []byte(script)), write(dir, imagesName, []byte(images)),
		write(dir, licencesName, []byte(licenceList(components, licences))))
	report, readErr := os.ReadFile(m.report())
	if errors.Is(readErr, os.ErrNotExist) {
		m.Progress.Say("no %s: go tool mage test:sandbox experiment makes it", experimentName)
		return err
	}
	return errors.Join(err, readErr, write(dir, experimentName, report))
}

// report is what the experiment has written, on this machine.
func (m *Maker) report() string { return filepath.Join(m.Root, "dist", "reports", experimentName) }

// imageList names the images that a node cannot do without; they are in the program.
func imageList(dist string) (string, error) {
	archives, err := filepath.Glob(filepath.Join(dist, imagesDir, "*.tar"))
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, archive := range archives {
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
		if err != nil {
			return "", fmt.Errorf("read the image %s: %w", archive, err)
		}
		for _, image := range manifest {
			text.WriteString(strings.Join(image.RepoTags, "\n") + "\n")
		}
	}
	return text.String(), nil
}

// seal writes the sums of all files, and signs them.
func (m *Maker) seal(dir string) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	sums, err := sumAll(dir, names)
	if err != nil {
		return err
	}
	text := []byte(sums.String())
	if err := write(dir, sumsName, text); err != nil {
		return err
	}
	if m.key != nil {
		signature, err := sign(text, m.key, m.signers)
		if err != nil {
			return err
		}
		if err := write(dir, signatureName, signature); err != nil {
			return err
		}
	}
	if names, err = list(dir); err != nil {
		return err
	}
	return exact(names)
}

func (m *Maker) conclude(state string) {
	what := m.source.Version + " of commit " + m.source.Commit[:12]
	if m.key == nil {
		what += ", not signed: " + keyVariable + " names no key"
	}
	if m.source.Snapshot() {
		what += ", a snapshot that is not to be published"
	}
	fmt.Printf("%s is in %s/: %s\n", what, Dir, state)
	fmt.Println("next: go tool mage release:verify")
}

// write writes a file of a release.
func write(dir, name string, data []byte) error {
	return os.WriteFile(filepath.Join(dir, name), data, 0o644)
}

// writeProgram writes the launcher as that of the release.
func (m *Maker) writeProgram(launcher, program string) (record.Build, error) {
	b, err := bundle.Open(launcher)
	if err != nil {
		return record.Build{}, hint.Add(err, "go tool mage build")
	}
	defer b.Close()
	out, err := os.OpenFile(program, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return record.Build{}, err
	}
	build, err := b.WriteRelease(out, m.source.Version)
	if err := errors.Join(err, out.Close()); err != nil {
		return build, hint.Add(fmt.Errorf("make a release of %s: %w", launcher, err), "go tool mage build makes it again")
	}
	return build, nil
}
