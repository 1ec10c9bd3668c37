package release

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"k3s9p/internal/gotool"
	"k3s9p/internal/hint"
	"k3s9p/internal/record"
)

// distribution is what the builder has made for one architecture.
type distribution struct {
	dir   string // dist/
	arch  string
	build record.Build
}

// readDistribution reads dist/build.json.
func readDistribution(dir string) (distribution, error) {
	d := distribution{dir: dir}
	data, err := os.ReadFile(filepath.Join(dir, "build.json"))
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(data, &d.build); err != nil {
		return d, fmt.Errorf("read %s: %w", filepath.Join(dir, "build.json"), err)
	}
	if d.build.Distribution == "k3s" {
		return d, hint.Add(fmt.Errorf("%s has the distribution k3s: its programs are in an archive, which an SBOM and licences would have to look into", dir),
			"DISTRO=kubernetes go tool mage release; dist/k3s is for this machine")
	}
	_, arch, found := strings.Cut(d.build.Toolchain.Platform, "/")
	if !found {
		return d, fmt.Errorf("%s names no platform", filepath.Join(dir, "build.json"))
	}
	d.arch = arch
	return d, nil
}

// unverified are the modules that were not made from the pinned source.
func (d distribution) unverified() []string {
	var modules []string
	for _, set := range d.build.Sets {
		modules = append(append(modules, set.Unverified...), set.Replaced...)
	}
	return modules
}

// imagesDir is where a distribution has its container images.
const imagesDir = "images"

// component is something that a program is linked from: a module, Go's standard
// library, a library of Debian.
type component struct {
	name, version string
	purl          string // https://github.com/package-url/purl-spec
	sum           string // h1: of the module zip, as in go.sum; empty for what is no module
	patches       []record.Patch
}

// executable is a program with what it is linked from.
type executable struct {
	path, version, sha256 string
	components            []component
	libraries             []string // of the system, as archives: libc.a
}

// executables are the programs of a build, which are in a directory, with the modules
// that the linker has noted down in them.
func executables(build record.Build, dir string) ([]executable, error) {
	var all []executable
	for _, output := range build.Outputs {
		if output.Link != "" || path.Dir(output.Path) == imagesDir {
			continue
		}
		e, err := executableOf(build, filepath.Join(dir, output.Path))
		if err != nil {
			return nil, err
		}
		e.path, e.sha256 = output.Path, output.SHA256
		all = append(all, e)
	}
	return all, nil
}

// ownModule is the path of this repository's module; a set of build/ is one below it.
const ownModule = "k3s9p"

func executableOf(build record.Build, file string) (executable, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return executable{}, fmt.Errorf("read the build information of %s: %w", file, err)
	}
	if platform := setting(info, "GOOS") + "/" + setting(info, "GOARCH"); platform != build.Toolchain.Platform {
		return executable{}, fmt.Errorf("%s is for %s, and its record is for %s", file, platform, build.Toolchain.Platform)
	}
	e := executable{version: info.Main.Version}
	deps := info.Deps
	if name, own := strings.CutPrefix(info.Main.Path+"/", ownModule+"/"); own {
		e.version = setVersion(build, strings.TrimSuffix(strings.TrimPrefix(name, "build/"), "/"))
	} else {
		deps = append(deps, &info.Main)
	}
	for _, dep := range deps {
		e.components = append(e.components, moduleOf(dep, build))
	}
	e.components = append(e.components, standardLibrary(info.GoVersion))
	if setting(info, "CGO_ENABLED") == "1" {
		e.libraries = append(e.libraries, "libc.a")
		if slices.Contains(strings.Split(setting(info, "-tags"), ","), "seccomp") {
			e.libraries = append(e.libraries, "libseccomp.a")
		}
	}
	return e, nil
}

func setVersion(build record.Build, name string) string {
	for _, set := range build.Sets {
		if set.Name == name {
			return set.Version
		}
	}
	return cmp.Or(build.Release, build.Version)
}

// moduleOf looks a module up in the record. A patched one was a directory for the
// linker, without a sum.
func moduleOf(dep *debug.Module, build record.Build) component {
	patched := false
	if dep.Replace != nil {
		if dep.Replace.Sum != "" {
			dep = dep.Replace
		} else {
			patched = true
		}
	}
	c := component{name: dep.Path, version: dep.Version, sum: dep.Sum, purl: "pkg:golang/" + dep.Path + "@" + dep.Version}
	for _, set := range build.Sets {
		for _, module := range set.Modules {
			if c.sum == "" && module.Path == dep.Path && module.Version == dep.Version {
				c.sum = module.Sum
			}
		}
		for _, patch := range set.Patches {
			if patched && patch.Module == dep.Path && patch.Version == dep.Version && !slices.Contains(c.patches, patch) {
				c.patches = append(c.patches, patch)
			}
		}
	}
	return c
}

func standardLibrary(version string) component {
	number := strings.TrimPrefix(version, "go")
	return component{name: "stdlib", version: number, purl: "pkg:golang/stdlib@" + number}
}

// addLibraries looks for the libraries of the system in this one.
func (e *executable) addLibraries(ctx context.Context, arch string) error {
	for _, archive := range e.libraries {
		library, err := libraryOf(ctx, archive, arch)
		if err != nil {
			return fmt.Errorf("find the package of %s, which is linked into %s: %w", archive, e.path, err)
		}
		e.components = append(e.components, library)
	}
	return nil
}

// libraryOf asks the compiler for a library, and dpkg for its package and the version
// of it.
func libraryOf(ctx context.Context, archive, arch string) (component, error) {
	file, err := output(ctx, gotool.CrossCompiler(arch), "-print-file-name="+archive)
	if err != nil {
		return component{}, err
	}
	if file, err = filepath.EvalSymlinks(file); err != nil {
		return component{}, err
	}
	owner, err := output(ctx, "dpkg-query", "--search", file)
	if err != nil {
		return component{}, err
	}
	name, _, _ := strings.Cut(owner, ": ")
	shown, err := output(ctx, "dpkg-query", "--show", "--showformat=${Version} ${Architecture}", name)
	if err != nil {
		return component{}, err
	}
	version, of, _ := strings.Cut(shown, " ") // a library for cross compiling is of all architectures
	name, _, _ = strings.Cut(name, ":")
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return component{}, err
	}
	return component{name: name, version: version, purl: fmt.Sprintf("%s%s/%s@%s?arch=%s", systemPURL, vendor(string(release)), name, version, of)}, nil
}

// systemPURL begins what names a package of the system
// (https://github.com/package-url/purl-spec, types/deb-definition.json).
const systemPURL = "pkg:deb/"

// vendor is who has made the packages of a system, by its os-release(5).
func vendor(release string) string {
	for line := range strings.Lines(release) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "ID="); ok {
			return strings.Trim(id, `"'`)
		}
	}
	return "debian"
}

func output(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

func setting(info *buildinfo.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// allComponents are those of some programs, each once, sorted.
func allComponents(programs []executable) []component {
	var all []component
	for _, program := range programs {
		all = append(all, program.components...)
	}
	slices.SortFunc(all, func(a, b component) int {
		return cmp.Or(strings.Compare(a.purl, b.purl), len(b.patches)-len(a.patches))
	})
	return slices.CompactFunc(all, func(a, b component) bool { return a.purl == b.purl })
}

// programs are those of a distribution, and the release's program, which carries them
// and is the launcher itself.
func (d distribution) programs(program, sum string) ([]executable, error) {
	programs, err := executables(d.build, d.dir)
	if err != nil {
		return nil, err
	}
	launcher, err := executableOf(d.build, program)
	if err != nil {
		return nil, err
	}
	launcher.path, launcher.sha256 = launcherPath, sum
	return append(programs, launcher), nil
}
