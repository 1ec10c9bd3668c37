package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"k3s9p/internal/bundle"
	"k3s9p/internal/hint"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// signersVariable names another list of keys than that in the repository.
const signersVariable = "K3S9P_RELEASE_SIGNERS"

// Verifier verifies a release from its files alone, with nothing but the list of keys
// of this repository.
type Verifier struct {
	Root     string // the repository
	Progress *progress.Printer
	Getenv   func(string) string
	// Again makes the release of a recipe in a clone of the repository, in Dir, so that it
	// can be compared; nil if nothing is to be made again.
	Again   func(ctx context.Context, clone string, r Recipe) error
	signers Signers
}

// Verified is what a verified release says of itself.
type Verified struct {
	Version string
	Commit  string
	Archs   []string
	Signed  bool
	Rebuilt bool // it was made again, with the same bytes
	builds  map[string]record.Build
}

// String says what was verified, and what was not.
func (v Verified) String() string {
	how := "signed"
	if !v.Signed {
		how = "NOT SIGNED"
	}
	if v.Rebuilt {
		how += ", and made again with the same bytes"
	}
	return fmt.Sprintf("verified: %s of commit %.12s for %s, %s", v.Version, v.Commit, strings.Join(v.Archs, ", "), how)
}

// Verify verifies the release in a directory or at an address.
func (v *Verifier) Verify(ctx context.Context, place string) (Verified, error) {
	var err error
	if v.signers, err = v.readSigners(); err != nil {
		return Verified{}, err
	}
	if !strings.Contains(place, "://") {
		return v.verify(ctx, place)
	}
	dir, err := os.MkdirTemp("", "k3s9p-release-")
	if err != nil {
		return Verified{}, err
	}
	defer rmtree.Tree(dir)
	if err := v.all(check{"download " + place, func() (string, error) { return "", download(ctx, place, dir) }}); err != nil {
		return Verified{}, err
	}
	return v.verify(ctx, dir)
}

func (v *Verifier) readSigners() (Signers, error) {
	file := v.Getenv(signersVariable)
	if file == "" {
		return readSigners(v.Root)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read who may sign releases: %w", err)
	}
	return ReadSigners(data)
}

// check is one thing that is looked at; it says what it has found.
type check struct {
	title string
	do    func() (string, error)
}

// all does checks until one fails.
func (v *Verifier) all(checks ...check) error {
	for _, c := range checks {
		step := v.Progress.Step("%s", c.title)
		said, err := c.do()
		if err != nil {
			step.Fail()
			return fmt.Errorf("verify: %s: %w", c.title, err)
		}
		step.Done("%s", said)
	}
	return nil
}

func (v *Verifier) verify(ctx context.Context, dir string) (Verified, error) {
	names, err := list(dir)
	if err != nil {
		return Verified{}, hint.Add(err, "go tool mage release makes one")
	}
	result := Verified{Archs: architectures(names), Signed: slices.Contains(names, signatureName), builds: make(map[string]record.Build)}
	var sums Sums
	err = v.all(
		check{"the files are those of a release", func() (string, error) { return fmt.Sprintf("%d files", len(names)), exact(names) }},
		check{"the sums are right", func() (said string, err error) {
			sums, err = checkSums(dir, names)
			return "", err
		}},
		check{"the signature is one of ours", func() (string, error) { return v.checkSignature(dir, result.Signed) }},
	)
	if err != nil {
		return result, err
	}
	for _, arch := range result.Archs {
		if err := v.verifyArch(ctx, dir, arch, sums, &result); err != nil {
			return result, err
		}
	}
	err = v.all(check{installerName + " installs this release", func() (string, error) {
		script, err := os.ReadFile(filepath.Join(dir, installerName))
		if err != nil {
			return "", err
		}
		return "", checkInstaller(string(script), result.Version, v.signers)
	}})
	if err == nil && v.Again != nil {
		err = v.rebuild(ctx, dir, &result)
	}
	return result, err
}

// checkSums compares each file with its sum.
func checkSums(dir string, names []string) (Sums, error) {
	data, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		return nil, err
	}
	want, err := parseSums(data)
	if err != nil {
		return nil, err
	}
	got, err := sumAll(dir, slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == sumsName || name == signatureName }))
	if err != nil {
		return nil, err
	}
	var wrong []error
	for _, name := range slices.Compact(slices.Sorted(slices.Values(append(want.names(), got.names()...)))) {
		if want[name] != got[name] {
			wrong = append(wrong, fmt.Errorf("%s has the SHA-256 %q, and %s says %q", name, got[name], sumsName, want[name]))
		}
	}
	return want, errors.Join(wrong...)
}

func (v *Verifier) checkSignature(dir string, signed bool) (string, error) {
	switch {
	case !signed && len(v.signers) == 0:
		return "NOT CHECKED: the release is not signed, and " + signersName + " has no key", nil
	case !signed:
		return "", hint.Add(errors.New("the release is not signed"), "somebody else may have made it; a maintainer signs it: %s=FILE go tool mage release", keyVariable)
	case len(v.signers) == 0:
		return "", hint.Add(fmt.Errorf("the release is signed, and %s has no key to compare with", signersName), "%s=FILE names a list of keys that you trust", signersVariable)
	}
	content, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		return "", err
	}
	signature, err := os.ReadFile(filepath.Join(dir, signatureName))
	if err != nil {
		return "", err
	}
	return "", verifySignature(content, signature, v.signers)
}

// verifyArch compares all that is said of the program of one architecture with what is
// in it. It is executed last.
func (v *Verifier) verifyArch(ctx context.Context, dir, arch string, sums Sums, result *Verified) error {
	temporary, err := os.MkdirTemp("", "k3s9p-verify-")
	if err != nil {
		return err
	}
	defer rmtree.Tree(temporary)
	name := programName(arch)
	d := distribution{dir: filepath.Join(temporary, "programs"), arch: arch}
	var programs []executable
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	return v.all(
		check{name + " unpacks", func() (said string, err error) {
			if d.build, err = unpack(filepath.Join(dir, name), d.dir); err != nil {
				return "", err
			}
			if err := result.agrees(d); err != nil {
				return "", err
			}
			result.builds[arch] = d.build
			programs, err = d.programs(filepath.Join(dir, name), sums[name])
			return fmt.Sprintf("%d programs, %s, %s", len(programs), d.build.Release, d.build.Version), err
		}},
		check{sbomName(arch) + " agrees with them", func() (string, error) {
			data, err := read(sbomName(arch))
			if err != nil {
				return "", err
			}
			return "", checkSBOM(data, d.build.Release, arch, sums[name], programs)
		}},
		check{provenanceName(arch) + " agrees with them", func() (string, error) {
			data, err := read(provenanceName(arch))
			if err != nil {
				return "", err
			}
			subjects := Sums{name: sums[name], imageName(arch): sums[imageName(arch)]}
			result.Commit, err = checkProvenance(data, d.build.Release, arch, subjects, d.build, allComponents(programs))
			return "commit " + result.Commit, err
		}},
		check{imageName(arch) + " has the same program", func() (string, error) {
			return "", checkImage(filepath.Join(dir, imageName(arch)), filepath.Join(temporary, "image"), d.build.Release, arch, sums[name])
		}},
		check{licencesName + " is about all modules", func() (string, error) {
			data, err := read(licencesName)
			if err != nil {
				return "", err
			}
			return "", checkLicences(string(data), allComponents(programs))
		}},
		check{name + " version", func() (string, error) {
			if arch != runtime.GOARCH {
				return "NOT RUN: this machine is " + runtime.GOARCH, nil
			}
			return "", checkVersion(ctx, filepath.Join(dir, name), temporary, d.build)
		}},
	)
}

// agrees takes the version from the first program, and compares that of the next.
func (r *Verified) agrees(d distribution) error {
	if platform := "linux/" + d.arch; d.build.Toolchain.Platform != platform {
		return fmt.Errorf("it is for %s, not %s", d.build.Toolchain.Platform, platform)
	}
	if r.Version != "" && d.build.Release != r.Version {
		return fmt.Errorf("it is of the release %s, and another program of %s", d.build.Release, r.Version)
	}
	r.Version = d.build.Release
	return nil
}

// unpack writes the programs in a program to a directory and returns their record.
func unpack(program, dir string) (record.Build, error) {
	b, err := bundle.Open(program)
	if err != nil {
		return record.Build{}, err
	}
	defer b.Close()
	build, err := b.Build()
	if err == nil && build.Release == "" {
		err = errors.New("it is no release: its record names none")
	}
	if err != nil {
		return build, err
	}
	return build, b.Unpack(dir)
}

func checkLicences(text string, components []component) error {
	var missing []error
	for _, c := range components {
		if !strings.Contains(text, "\n"+c.name+" "+c.version+" (") {
			missing = append(missing, fmt.Errorf("it has nothing about %s %s", c.name, c.version))
		}
	}
	return errors.Join(missing...)
}

// checkVersion runs a copy of the program: what was downloaded is not executable.
func checkVersion(ctx context.Context, program, dir string, build record.Build) error {
	content, err := os.Open(program)
	if err != nil {
		return err
	}
	defer content.Close()
	run := filepath.Join(dir, "k3s9p")
	file, err := os.OpenFile(run, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	text, err := output(ctx, run, "version", "-o", "json")
	if err != nil {
		return err
	}
	var said record.Build
	if err := json.Unmarshal([]byte(text), &said); err != nil {
		return fmt.Errorf("read what it says: %w", err)
	}
	if !reflect.DeepEqual(said, build) {
		return fmt.Errorf("it says that it is %s, %s, and its record %s, %s", said.Release, said.Version, build.Release, build.Version)
	}
	return nil
}
