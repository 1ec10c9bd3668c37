package k3s

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"

	"k3s9p/internal/hint"
)

// Upstream is what the sources of k3s say about its build.
type Upstream struct {
	Version     string            // of the release line: v1.36.2+k3s1
	Names       map[string]string // the variables of scripts/version.sh that are literals, and ARCH
	ServerLinks []string          // of the server program
	CNILinks    []string          // of the program with the network plugins
	// Manifests are deployed at the start, relative to manifests/.
	Manifests []string
	// Charts are the Helm charts that a manifest wants to be embedded.
	Charts map[string][]string
}

// Places in the sources of k3s that the build knows.
const (
	ManifestsDir   = "manifests"
	ManifestsEmbed = "pkg/deploy/embed" // for manifests
	DataEmbed      = "pkg/data/embed"   // for the archive
	CheckConfig    = "contrib/util/check-config.sh"

	buildScript    = "scripts/build"
	packageScript  = "scripts/package-cli"
	versionScript  = "scripts/version.sh"
	kubernetesPath = "k8s.io/kubernetes"
)

// driftError says what is not where it was.
func driftError(where, what string) error {
	return hint.Add(fmt.Errorf("%s: %s: this k3s is not laid out as the build knows it", where, what),
		"read what changed in k3s's scripts since the pinned version, then bring internal/k3s and build/k3s up to date")
}

// Read reads the sources of k3s in a directory. An error says what is not as expected.
func Read(dir string) (Upstream, error) {
	for _, name := range []string{"cmd/server", "cmd/k3s", ManifestsDir, ManifestsEmbed, DataEmbed, CheckConfig} {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			return Upstream{}, driftError(name, "there is none")
		} else if err != nil {
			return Upstream{}, err
		}
	}
	var u Upstream
	for _, read := range []func(string) error{u.readVersions, u.readLinks, u.readManifests} {
		if err := read(dir); err != nil {
			return Upstream{}, err
		}
	}
	return u, nil
}

var (
	literal  = regexp.MustCompile(`(?m)^(VERSION_[A-Z_]+)="([^"$]+)"$`)
	rootSum  = regexp.MustCompile(`(?m)^\s*(\w+)\)\s*\n\s*K3S_ROOT_SHA256=([0-9a-f]{64})$`)
	fork     = regexp.MustCompile(`^(v\d+\.\d+\.\d+)-(k3s\d+)$`)
	chartRef = regexp.MustCompile(`(?m)^\s*chart: \S*/static/charts/(\S+\.tgz)\s*$`)
)

// readVersions reads scripts/version.sh and go.mod.
func (u *Upstream) readVersions(dir string) error {
	script, err := os.ReadFile(filepath.Join(dir, versionScript))
	if err != nil {
		return driftError(versionScript, err.Error())
	}
	u.Names = map[string]string{"ARCH": runtime.GOARCH}
	for _, match := range literal.FindAllStringSubmatch(string(script), -1) {
		u.Names[match[1]] = match[2]
	}
	for _, match := range rootSum.FindAllStringSubmatch(string(script), -1) {
		if match[1] == runtime.GOARCH {
			u.Names["K3S_ROOT_SHA256"] = match[2]
		}
	}
	for _, name := range []string{"VERSION_CNIPLUGINS", "VERSION_FLANNEL_PLUGIN", "VERSION_ROOT", "VERSION_HELM_JOB", "K3S_ROOT_SHA256"} {
		if u.Names[name] == "" {
			return driftError(versionScript, fmt.Sprintf("it gives %s no literal value for %s", name, runtime.GOARCH))
		}
	}
	modules, err := modules(dir)
	if err != nil {
		return err
	}
	match := fork.FindStringSubmatch(modules[kubernetesPath].Version)
	if match == nil {
		return driftError("go.mod", fmt.Sprintf("%s is in version %q, not in one of the fork like v1.36.2-k3s1", kubernetesPath, modules[kubernetesPath].Version))
	}
	u.Version = match[1] + "+" + match[2]
	const flannel = "github.com/flannel-io/flannel"
	if modules[flannel].Version == "" {
		return driftError("go.mod", "it does not name "+flannel)
	}
	u.Names["VERSION_FLANNEL"] = modules[flannel].Version
	return nil
}

// Module is a module with its version.
type Module struct{ Path, Version string }

// modules are the modules that the go.mod in a directory names by the path by which
// they are imported: replacements, and what is not replaced.
func modules(dir string) (map[string]Module, error) {
	data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return nil, err
	}
	file, err := modfile.Parse("go.mod", data, nil)
	if err != nil {
		return nil, err
	}
	all := make(map[string]Module)
	for _, require := range file.Require {
		all[require.Mod.Path] = Module(require.Mod)
	}
	for _, replace := range file.Replace {
		all[replace.Old.Path] = Module(replace.New)
	}
	return all, nil
}

// Wanted are the modules of which the parts of the k3s in a directory are made, by the
// path by which they are imported.
func (u Upstream) Wanted(dir string) (map[string]Module, error) {
	all, err := modules(dir)
	if err != nil {
		return nil, err
	}
	const containerd, runc = "github.com/containerd/containerd/v2", "github.com/opencontainers/runc"
	for _, path := range []string{containerd, runc} {
		if all[path].Version == "" {
			return nil, driftError("go.mod", "it does not name "+path)
		}
	}
	return map[string]Module{
		containerd: all[containerd],
		runc:       all[runc],
		// scripts/build clones both, at these tags.
		"github.com/containernetworking/plugins": {"github.com/rancher/plugins", u.Names["VERSION_CNIPLUGINS"]},
		"github.com/flannel-io/cni-plugin":       {"github.com/flannel-io/cni-plugin", u.Names["VERSION_FLANNEL_PLUGIN"]},
	}, nil
}

var (
	serverList  = regexp.MustCompile(`(?ms)^k3s_binaries=\((.*?)^\)`)
	packageList = regexp.MustCompile(`(?m)^for i in ([a-z0-9 -]+); do\n\s*rm -f bin/`)
	cniList     = regexp.MustCompile(`(?ms)^cni_binaries=\((.*?)^\)`)
	pluginName  = regexp.MustCompile(`^[a-z0-9-]+$`)
)

// readLinks reads the names of the programs' links from the scripts.
func (u *Upstream) readLinks(dir string) error {
	texts := make(map[string]string)
	for _, name := range []string{buildScript, packageScript} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return driftError(name, err.Error())
		}
		texts[name] = string(data)
	}
	built, packed := serverList.FindStringSubmatch(texts[buildScript]), packageList.FindStringSubmatch(texts[packageScript])
	plugins := cniList.FindStringSubmatch(texts[packageScript])
	switch {
	case built == nil:
		return driftError(buildScript, "it has no list k3s_binaries")
	case packed == nil:
		return driftError(packageScript, "it has no list of links to k3s")
	case plugins == nil:
		return driftError(packageScript, "it has no list cni_binaries")
	}
	links := make(map[string]bool)
	for _, name := range strings.Fields(strings.ReplaceAll(built[1], `"`, "")) {
		links[strings.TrimPrefix(name, "bin/")] = true
	}
	for _, name := range strings.Fields(packed[1]) {
		links[name] = true
	}
	u.ServerLinks = slices.Sorted(maps.Keys(links))
	u.CNILinks = strings.Fields(strings.ReplaceAll(plugins[1], `"`, ""))
	for _, name := range slices.Concat(u.ServerLinks, u.CNILinks) {
		if !pluginName.MatchString(name) {
			return driftError(packageScript, fmt.Sprintf("%q is no name of a link", name))
		}
	}
	return nil
}

// readManifests lists the manifests, and the charts that they need.
func (u *Upstream) readManifests(dir string) error {
	u.Charts = make(map[string][]string)
	root := filepath.Join(dir, ManifestsDir)
	return filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(file)
		u.Manifests = append(u.Manifests, filepath.ToSlash(name))
		for _, match := range chartRef.FindAllStringSubmatch(string(data), -1) {
			u.Charts[filepath.ToSlash(name)] = append(u.Charts[filepath.ToSlash(name)], path.Base(match[1]))
		}
		return err
	})
}
