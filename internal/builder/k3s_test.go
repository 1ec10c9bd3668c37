package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"

	"k3s9p/internal/command"
	"k3s9p/internal/digest"
	"k3s9p/internal/pin"
	"k3s9p/internal/progress"
	"k3s9p/internal/record"
	"k3s9p/internal/rmtree"
)

// made is a repository whose build/k3s is that of this one, with a module proxy, in
// files, of small modules in k3s's layout.
type made struct {
	*Builder
	t     *testing.T
	dir   string // of proxy, module cache and repository
	sums  map[string]string
	root  *httptest.Server // of the userland's archive
	asked int              // how often the archive was asked for
}

// leaves are the modules that others are made of: they come first, as their sums go into
// the go.sum of the others.
var leaves = []string{"kubernetes", "cadvisor", "cgroups", "containerd-cgroups"}

// changes are texts of the modules, or of build/k3s, that are replaced.
type changes map[string]string

// makeK3s makes the repository and the proxy. Each change has to be possible.
func makeK3s(t *testing.T, c changes) *made {
	t.Helper()
	m := &made{t: t, dir: t.TempDir(), sums: make(map[string]string)}
	t.Cleanup(func() { rmtree.Tree(m.dir) }) // the module cache is read-only
	userland := m.userland()
	m.root = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.asked++
		if !strings.HasPrefix(r.URL.Path, "/v0.15.2/k3s-root-") {
			http.NotFound(w, r)
			return
		}
		w.Write(userland)
	}))
	t.Cleanup(m.root.Close)

	goSum, err := os.ReadFile(filepath.Join("..", "..", "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(goSum)) {
		if fields := strings.Fields(line); fields[0] == "github.com/klauspost/compress" {
			m.sums[fields[0]+" "+fields[1]] = fields[2]
		}
	}
	klauspost := ""
	for name := range m.sums {
		if version := strings.TrimPrefix(name, "github.com/klauspost/compress "); !strings.HasSuffix(version, "/go.mod") {
			klauspost = version
		}
	}
	used := make(map[string]bool)
	edit := func(text string) string {
		for from, to := range c {
			if strings.Contains(text, from) {
				used[from] = true
				text = strings.ReplaceAll(text, from, to)
			}
		}
		return text
	}
	constants := strings.NewReplacer("KLAUSPOST", klauspost, "ROOTSUM", digest.Bytes(userland))
	for _, name := range append(slices.Clone(leaves), "containerd", "runc", "plugins", "flannel", "k3s") {
		text, err := os.ReadFile(filepath.Join("testdata", "k3s", name+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		m.publish(edit(constants.Replace(string(text))))
	}

	m.write("repository/go.mod", "module k3s9p\n\ngo 1.26\n")
	m.write("repository/cmd/k3s9p/main.go", "package main\n\nfunc main() {}\n")
	m.write("repository/cmd/pause/main.go", "package main\n\nfunc main() {}\n")
	m.write("repository/build/k3s/go.mod", edit(m.own("go.mod")))
	m.write("repository/build/k3s/go.sum", m.goSum())
	m.write("repository/build/k3s/build.yaml", edit(m.config()))
	for _, module := range []struct{ path, version, name, further string }{
		{"k8s.io/kubernetes", "v1.36.3, v1.36.2", "kubernetes", "- {path: github.com/k3s-io/kubernetes, versions: [v1.36.2-k3s1]}\n"},
		{"github.com/google/cadvisor", "v0.56.2", "cadvisor", ""},
		{"github.com/opencontainers/cgroups", "v0.0.6", "cgroups", ""},
		{"github.com/containerd/cgroups/v3", "v3.1.3", "containerd-cgroups", ""},
		{"github.com/rancher/plugins", "v1.9.1-k3s1", "bridge", ""},
	} {
		dir := "repository/patches/" + module.path + "/v1/"
		file, pkg := module.name+".go", strings.TrimPrefix(module.name, "containerd-")
		if pkg == "cgroups" {
			file = "cgroups.go"
		}
		if module.name == "bridge" {
			file = "plugins/main/bridge/bridge.go"
		}
		m.write(dir+"series.yaml", fmt.Sprintf("modules:\n- {path: %s, versions: [%s]}\n%s", module.path, module.version, module.further))
		m.write(dir+"0001-say-that-it-is-patched.patch", fmt.Sprintf(`Description: say that it is patched
Origin: vendor, k3s9p
Bug: none
Forwarded: not-needed
Last-Update: 2026-01-02
---
diff --git a/%[1]s b/%[1]s
--- a/%[1]s
+++ b/%[1]s
@@ -3,5 +3,5 @@
 
 // What is patched.
 func What() string {
-	return "stock-%[2]s"
+	return "patched-%[2]s"
 }
`, file, module.name))
	}
	for from := range c {
		if !used[from] {
			t.Fatalf("nothing has %q to be changed", from)
		}
	}
	cache, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	m.Builder = m.at("repository", "GOPROXY=file://"+m.path("proxy")+",file://"+filepath.Join(strings.TrimSpace(string(cache)), "cache", "download"))
	return m
}

func (m *made) path(elem ...string) string { return filepath.Join(append([]string{m.dir}, elem...)...) }

// at is a builder for a repository in the directory.
func (m *made) at(root string, variables ...string) *Builder {
	variables = append(variables, "GOMODCACHE="+m.path("modcache"), "GONOSUMDB=*")
	return At(m.path(root), command.Runner{UI: progress.New(false)}, variables...)
}

func (m *made) write(name, text string) {
	m.t.Helper()
	file := m.path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// own is a file of this repository's build/k3s.
func (m *made) own(name string) string {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "build", "k3s", name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(data)
}

// config is this repository's build.yaml for programs without C.
func (m *made) config() string {
	var kept []string
	for line := range strings.Lines(m.own("build.yaml")) {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "needs:"), strings.HasPrefix(trimmed, "- {package: "), strings.HasPrefix(trimmed, "linker:"),
			strings.HasPrefix(trimmed, "onlyByName:"):
		case trimmed == "cgo: true":
			kept = append(kept, strings.Replace(line, "true", "false", 1))
		default:
			kept = append(kept, line)
		}
	}
	return strings.Replace(strings.Join(kept, ""), "https://github.com/k3s-io/k3s-root/releases/download", m.root.URL, 1)
}

func (m *made) goSum() string {
	var lines []string
	for module, sum := range m.sums {
		lines = append(lines, module+" "+sum+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// publish puts a module into the proxy. Its go.sum has all sums that are known so far.
func (m *made) publish(text string) {
	m.t.Helper()
	archive := txtar.Parse([]byte(text))
	fields := strings.Fields(string(archive.Comment))
	mod := module.Version{Path: fields[0], Version: fields[1]}
	source := "source/" + filepath.Base(mod.Path) + "-" + mod.Version
	for _, file := range archive.Files {
		m.write(filepath.Join(source, file.Name), string(file.Data))
	}
	m.write(filepath.Join(source, "go.sum"), m.goSum())
	at := filepath.Join("proxy", mod.Path, "@v", mod.Version)
	goMod, err := os.ReadFile(m.path(source, "go.mod"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(at+".mod", string(goMod))
	m.write(at+".info", fmt.Sprintf(`{"Version":%q,"Time":"2026-01-01T00:00:00Z"}`, mod.Version))
	m.zip(mod.Path, mod.Version)
	sum, err := dirhash.HashZip(m.path(at+".zip"), dirhash.Hash1)
	if err != nil {
		m.t.Fatal(err)
	}
	modSum, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) { return os.Open(m.path(source, "go.mod")) })
	if err != nil {
		m.t.Fatal(err)
	}
	m.sums[mod.Path+" "+mod.Version] = sum
	m.sums[mod.Path+" "+mod.Version+"/go.mod"] = modSum
}

// zip puts the sources of a module into the proxy.
func (m *made) zip(path, version string) {
	m.t.Helper()
	var data bytes.Buffer
	if err := zip.CreateFromDir(&data, module.Version{Path: path, Version: version}, m.path("source", filepath.Base(path)+"-"+version)); err != nil {
		m.t.Fatal(err)
	}
	m.write(filepath.Join("proxy", path, "@v", version+".zip"), data.String())
}

// userland is an archive like that of k3s-root.
func (m *made) userland() []byte {
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "./bin/aux/busybox", Mode: 0o755, Size: 4},
		{Typeflag: tar.TypeSymlink, Name: "./bin/aux/mount", Linkname: "busybox"},
		{Typeflag: tar.TypeReg, Name: "./etc/busybox.conf", Mode: 0o644, Size: 4},
	} {
		if err := w.WriteHeader(h); err != nil {
			m.t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("box\n")); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	return data.Bytes()
}

// record is the build.json of a repository.
func (m *made) record(b *Builder) record.Build {
	m.t.Helper()
	var build record.Build
	data, err := os.ReadFile(b.Dist("build.json"))
	if err == nil {
		err = json.Unmarshal(data, &build)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return build
}

// run runs a program with a data directory for k3s.
func (m *made) run(name string, args ...string) string {
	m.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "K3S_DATA_DIR="+m.path("data"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// The whole way: from modules on a proxy to one file that unpacks itself, each part of
// it patched, and with the version that says so.
func TestK3s(t *testing.T) {
	m := makeK3s(t, nil)
	m.write("repository/build/beside/build.yaml", "distributions: [k3s]\nmodule: github.com/opencontainers/runc\nprograms:\n- {name: beside, package: github.com/opencontainers/runc}\n")
	m.write("repository/build/beside/go.mod", "module k3s9p/build/beside\n\ngo 1.26\n\nrequire github.com/opencontainers/runc v1.4.2\n")
	m.write("repository/build/beside/go.sum", m.goSum())
	if err := m.Build(t.Context(), "k3s"); err != nil {
		t.Fatal(err)
	}
	if got := m.run(m.Dist("bin", "beside")); got != "runc\n" {
		t.Errorf("the program of another set, beside k3s, says %q", got)
	}
	if sets := m.record(m.Builder).Sets; len(sets) != 7 || sets[0].Name != "k3s-server" {
		t.Errorf("the record has %d sets", len(sets))
	}
	build := m.record(m.Builder)
	version := build.Version
	if !strings.HasPrefix(version, "v1.36.2+k3s1.k3s9p.") || build.Distribution != "k3s" {
		t.Errorf("distribution %s has version %s", build.Distribution, version)
	}
	k3s := m.Dist("k3s")
	if got, want := m.run(k3s, "--version"), "k3s version "+version+" (4ca29faa)\n"; got != want {
		t.Errorf("k3s --version says %q, want %q", got, want)
	}
	server := m.run(k3s, "ctr")
	if want := "ctr version " + version + " (4ca29faa)\npatched-kubernetes patched-cadvisor patched-cgroups patched-containerd-cgroups\n" +
		"embed/.empty\nembed/coredns.yaml\nembed/metrics/service.yaml\n"; server != want {
		t.Errorf("k3s ctr says %q, want %q", server, want)
	}
	bin := m.path("data", "data", "current", "bin")
	for program, want := range map[string]string{
		"k3s-server":              "k3s-server version " + version + " (4ca29faa)",
		"containerd":              "containerd version " + version,
		"containerd-shim-runc-v2": "github.com/k3s-io/containerd/v2 patched-containerd-cgroups",
		"runc":                    "runc\n",
		"bridge":                  "patched-bridge\n",
		"flannel":                 "flannel v1.9.0-flannel1+v0.28.4 HEAD linux\n",
		"check-config":            "checked\n",
	} {
		if got := m.run(filepath.Join(bin, program)); !strings.Contains(got, want) {
			t.Errorf("%s says %q, want %q in it", program, got, want)
		}
	}
	if link, err := os.Readlink(filepath.Join(bin, "aux", "mount")); err != nil || link != "busybox" {
		t.Errorf("the userland's mount is %q, %v", link, err)
	}
	if conf, err := os.ReadFile(filepath.Join(bin, "..", "etc", "busybox.conf")); err != nil || string(conf) != "box\n" {
		t.Errorf("the userland's configuration is %q, %v", conf, err)
	}
	if len(build.Lacks) != 1 || !strings.Contains(build.Lacks[0], "manifests/traefik.yaml") || !strings.Contains(build.Lacks[0], "traefik-40.1.4+up40.1.0.tgz") {
		t.Errorf("it lacks %q, want the charts and nothing else", build.Lacks)
	}
	for _, pin := range []string{"github.com/k3s-io/k3s", "github.com/k3s-io/kubernetes", "github.com/k3s-io/containerd/v2", "github.com/rancher/plugins"} {
		found := slices.ContainsFunc(build.Sets, func(s record.Set) bool {
			return slices.ContainsFunc(s.Modules, func(r record.Module) bool { return r.Path == pin && r.Sum == m.sums[pin+" "+r.Version] })
		})
		if !found {
			t.Errorf("build.json has no %s with its sum", pin)
		}
	}

	t.Run("nothing is made twice", func(t *testing.T) {
		sums, err := os.ReadFile(m.Dist(SumsName))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(k3s)
		if err != nil {
			t.Fatal(err)
		}
		// No network: what was fetched is there.
		again := m.at("repository", "GOPROXY=off")
		if err := again.Build(t.Context(), "auto"); err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(k3s)
		if data, sumsErr := os.ReadFile(m.Dist(SumsName)); err != nil || sumsErr != nil || !bytes.Equal(data, sums) || !os.SameFile(info, after) {
			t.Errorf("dist/ has changed: %v, %v", err, sumsErr)
		}
		if m.asked != 1 {
			t.Errorf("the userland was asked for %d times", m.asked)
		}
	})
	t.Run("the same bytes elsewhere", func(t *testing.T) {
		clone, remove, err := m.Clone("k3s9p-elsewhere-")
		if err != nil {
			t.Fatal(err)
		}
		defer remove()
		clone.Variables = m.Variables
		if err := clone.Build(t.Context(), "k3s"); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"k3s", RecordName} {
			here, _, err := digest.File(m.Dist(name))
			if err != nil {
				t.Fatal(err)
			}
			if there, _, err := digest.File(clone.Dist(name)); err != nil || here != there {
				t.Errorf("%s is another one in another directory: %v", name, err)
			}
		}
	})
	t.Run("slim", func(t *testing.T) {
		m.Slim = true
		defer func() { m.Slim = false }()
		if err := m.Build(t.Context(), "k3s"); err != nil {
			t.Fatal(err)
		}
		if lacks := m.record(m.Builder).Lacks; len(lacks) != 2 || !strings.Contains(lacks[0], "userland") || !strings.Contains(lacks[0], "-slim") {
			t.Errorf("it lacks %q, want the userland to be the first", lacks)
		}
		if err := os.RemoveAll(m.path("data")); err != nil {
			t.Fatal(err)
		}
		m.run(k3s, "ctr")
		if _, err := os.Lstat(filepath.Join(bin, "aux")); err == nil {
			t.Error("a slim k3s has a userland")
		}
	})
	t.Run("a server that cannot be reached", func(t *testing.T) {
		m.root.Close()
		if err := rmtree.Tree(m.Work("inputs")); err != nil {
			t.Fatal(err)
		}
		if err := m.Build(t.Context(), "k3s"); err != nil {
			t.Fatal(err)
		}
		if lacks := m.record(m.Builder).Lacks; len(lacks) != 2 || !strings.Contains(lacks[0], "connection refused") {
			t.Errorf("it lacks %q, want the userland to be the first, and why", lacks)
		}
	})
}

// What is not as it was pinned, or as the build knows it, is said, and nothing is built.
func TestK3sRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change changes
		then   func(*made)
		want   []string
	}{
		{name: "other bytes than the pinned ones", then: func(m *made) {
			m.write("repository/build/k3s/go.sum", strings.Replace(m.goSum(), m.sums["github.com/k3s-io/k3s "+k3sVersion], "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1))
		}, want: []string{"module github.com/k3s-io/k3s " + k3sVersion + ": checksum mismatch", "build/k3s/go.sum says h1:AAAA"}},
		{name: "other bytes of a fork", then: func(m *made) {
			m.write("source/kubernetes-v1.36.2-k3s1/more.go", "package kubernetes\n")
			m.zip("github.com/k3s-io/kubernetes", "v1.36.2-k3s1")
		}, want: []string{"module github.com/k3s-io/kubernetes v1.36.2-k3s1: checksum mismatch", "github.com/k3s-io/k3s@" + k3sVersion + "/go.sum says h1:"}},
		{name: "no checksum", then: func(m *made) {
			m.write("repository/build/k3s/go.sum", strings.Replace(m.goSum(), "github.com/rancher/plugins v1.9.1-k3s1 h1:", "github.com/rancher/others v1.9.1-k3s1 h1:", 1))
		}, want: []string{"build/k3s/go.sum has no checksum for github.com/rancher/plugins v1.9.1-k3s1"}},
		{name: "a version of a script", change: changes{`VERSION_CNIPLUGINS="v1.9.1-k3s1"`: `VERSION_CNIPLUGINS=$(get-module-version plugins)`},
			want: []string{"github.com/k3s-io/k3s " + k3sVersion + ": scripts/version.sh: it gives VERSION_CNIPLUGINS no literal value", "hint: read what changed"}},
		{name: "a list of links", change: changes{"k3s_binaries=(": "k3s_programs=("}, want: []string{"scripts/build: it has no list k3s_binaries", "hint: read what changed"}},
		{name: "a directory", change: changes{"-- pkg/data/embed/.empty --": "-- pkg/data/packed/.empty --"}, want: []string{"pkg/data/embed: there is none"}},
		{name: "another runc", change: changes{"runc => github.com/opencontainers/runc v1.4.2": "runc => github.com/opencontainers/runc v1.5.0"},
			want: []string{"build/k3s/go.mod pins github.com/opencontainers/runc v1.4.2, and github.com/k3s-io/k3s " + k3sVersion + " is made with github.com/opencontainers/runc v1.5.0", "hint: "}},
		{name: "another cAdvisor", change: changes{"github.com/google/cadvisor v0.56.2": "github.com/google/cadvisor v0.57.0"},
			want: []string{"no series in patches/ is for github.com/google/cadvisor v0.57.0", "hint: there are series for v0.56.2"}},
		{name: "a fork that has changed", change: changes{`return "stock-kubernetes"`: `return "other"`},
			want: []string{"patch github.com/k3s-io/kubernetes v1.36.2-k3s1: 0001-say-that-it-is-patched.patch: hunk 1 does not apply at kubernetes.go"}},
		{name: "a plugin that is no program", change: changes{"package main\n\nimport \"fmt\"\n\nvar Program": "package flannel\n\nimport \"fmt\"\n\nvar Program"},
			want: []string{"flannel.go of github.com/flannel-io/cni-plugin is not in package main"}},
		{name: "another userland", change: changes{"K3S_ROOT_SHA256=": "K3S_ROOT_SHA256=0000000000000000000000000000000000000000000000000000000000000000 # "},
			want: []string{"scripts/version.sh: it gives K3S_ROOT_SHA256 no literal value"}},
		{name: "a module that the proxy does not have", then: func(m *made) {
			if err := os.RemoveAll(m.path("proxy", "github.com", "k3s-io", "k3s")); err != nil {
				m.t.Fatal(err)
			}
		}, want: []string{"module github.com/k3s-io/k3s " + k3sVersion + ", pinned by build/k3s, cannot be fetched: ", "no such file or directory",
			"hint: GOPROXY=", "K3S9P_SOURCE_k3s=DIR", "DISTRO=kubernetes"}},
		{name: "plugins that the proxy does not have", then: func(m *made) {
			if err := os.RemoveAll(m.path("proxy", "github.com", "rancher")); err != nil {
				m.t.Fatal(err)
			}
		}, want: []string{"module github.com/rancher/plugins v1.9.1-k3s1, pinned by build/k3s, cannot be fetched: ", "K3S9P_SOURCE_github_com_rancher_plugins=DIR"}},
		{name: "a fork that the proxy does not have", then: func(m *made) {
			if err := os.RemoveAll(m.path("proxy", "github.com", "k3s-io", "kubernetes")); err != nil {
				m.t.Fatal(err)
			}
		}, want: []string{"module github.com/k3s-io/kubernetes v1.36.2-k3s1, pinned by github.com/k3s-io/k3s@" + k3sVersion + ",", "cannot be fetched: ", "K3S9P_REPLACE=FILE", "DISTRO=kubernetes"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := makeK3s(t, test.change)
			if test.then != nil {
				test.then(m)
			}
			err := m.Build(t.Context(), "k3s")
			if err == nil {
				t.Fatal("it was built")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
			if _, err := os.Stat(m.Dist("k3s")); err == nil {
				t.Error("there is a k3s")
			}
		})
	}
}

// A directory is the pinned source if its module zip has the pinned sum; another one is
// refused, with both sums.
func TestK3sFromDirectory(t *testing.T) {
	m := makeK3s(t, nil)
	source := m.path("source", "k3s-"+k3sVersion)
	if err := os.RemoveAll(m.path("proxy", "github.com", "k3s-io", "k3s")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("K3S9P_SOURCE_k3s", source)
	selection, err := m.Selection(t.Context(), "k3s")
	if err != nil {
		t.Fatal(err)
	}
	if main := selection.Sets[0].Main; main.Local == nil || !main.Local.Verified || main.Pin.Sum != m.sums["github.com/k3s-io/k3s "+k3sVersion] {
		t.Errorf("the server is made of %+v", main)
	}
	if modules := selection.Sets[0].Unverified(); len(modules) > 0 {
		t.Errorf("unverified are %v", modules)
	}
	m.write("source/k3s-"+k3sVersion+"/more.go", "package main\n")
	_, err = m.Selection(t.Context(), "auto")
	if err == nil || !strings.Contains(err.Error(), "K3S9P_SOURCE_k3s="+source+" is not the pinned source of github.com/k3s-io/k3s "+k3sVersion+": its module zip has h1:") ||
		!strings.Contains(err.Error(), "go.sum says "+m.sums["github.com/k3s-io/k3s "+k3sVersion]) {
		t.Errorf("another directory gives %v", err)
	}
	t.Setenv("K3S9P_UNVERIFIED", "1")
	if selection, err = m.Selection(t.Context(), "k3s"); err != nil {
		t.Fatal(err)
	}
	if modules := selection.Sets[0].Unverified(); !slices.Equal(modules, []string{"github.com/k3s-io/k3s"}) {
		t.Errorf("unverified are %v", modules)
	}
}

// Where the network has upstream's modules and not the forks, replace lines put the ones
// in the place of the others; build.json says that it is not what is pinned.
func TestK3sReplaced(t *testing.T) {
	m := makeK3s(t, nil)
	if err := os.RemoveAll(m.path("proxy", "github.com", "k3s-io", "kubernetes")); err != nil {
		t.Fatal(err)
	}
	fork, err := os.ReadFile(filepath.Join("testdata", "k3s", "kubernetes.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	m.publish(strings.Replace(string(fork), "github.com/k3s-io/kubernetes v1.36.2-k3s1", "k8s.io/kubernetes v1.36.2", 1))
	const line = "k8s.io/kubernetes => k8s.io/kubernetes v1.36.2"
	m.write("replace.mod", "replace "+line+"\n")
	t.Setenv("K3S9P_REPLACE", m.path("replace.mod"))
	if err := m.Build(t.Context(), "k3s"); err != nil {
		t.Fatal(err)
	}
	if got := m.run(m.Dist("k3s"), "ctr"); !strings.Contains(got, "\npatched-kubernetes patched-cadvisor ") {
		t.Errorf("k3s ctr says %q", got)
	}
	for _, set := range m.record(m.Builder).Sets {
		want := set.Name == "k3s-server" || set.Name == "k3s"
		if got := slices.Equal(set.Replaced, []string{line}); got != want || !want && set.Replaced != nil {
			t.Errorf("%s has replaced %q", set.Name, set.Replaced)
		}
		if set.Name == "k3s-server" && !slices.Contains(set.Modules, record.Module{Path: "k8s.io/kubernetes", Version: "v1.36.2", Sum: m.sums["k8s.io/kubernetes v1.36.2"]}) {
			t.Errorf("%s is made of %v", set.Name, set.Modules)
		}
	}
	if goMod, err := os.ReadFile(m.path("source", "k3s-"+k3sVersion, "go.mod")); err != nil || bytes.Contains(goMod, []byte(line)) {
		t.Errorf("the sources were changed, %v", err)
	}
	stock, err := filepath.Glob(m.Work("stock", "github.com+k3s-io+k3s@*", "go.mod"))
	if err != nil || len(stock) != 1 {
		t.Fatalf("stock trees are %v, %v", stock, err)
	}
	if goMod, err := os.ReadFile(stock[0]); err != nil || bytes.Contains(goMod, []byte(line)) {
		t.Errorf("the stock tree was changed, %v", err)
	}

	for text, want := range map[string]string{
		"replace example.com/nothing => example.com/other v1.0.0\n": "no part of the distribution names example.com/nothing",
		"module example.com/m\n\nreplace " + line + "\n":            "is not a file with replace lines and nothing else",
		"replaced " + line + "\n":                                   "unknown directive: replaced",
	} {
		m.write("replace.mod", text)
		if _, err := m.Selection(t.Context(), "k3s"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v, want %q", text, err, want)
		}
	}
}

const k3sVersion = "v1.36.3-0.20260720191027-4ca29faac89e"

// An archive with other bytes than those that k3s names is an error; one that cannot be
// had is not, and leaves nothing.
func TestFetchInput(t *testing.T) {
	m := makeK3s(t, nil)
	url, final := m.root.URL+"/v0.15.2/k3s-root-amd64.tar", m.Work("inputs", "root")
	right := digest.Bytes(m.userland())
	if why, err := m.fetchInput(t.Context(), url, strings.Repeat("0", 64), final); err == nil ||
		!strings.Contains(err.Error(), "checksum mismatch: what was fetched has sha256 "+right+", k3s names 0000") || !strings.Contains(err.Error(), "hint: mage build -slim") {
		t.Errorf("other bytes: %q, %v", why, err)
	}
	if why, err := m.fetchInput(t.Context(), m.root.URL+"/elsewhere", right, final); err != nil || !strings.HasSuffix(why, "/elsewhere: 404 Not Found") {
		t.Errorf("no such file: %q, %v", why, err)
	}
	if _, err := os.Stat(final); err == nil {
		t.Error("there is an archive")
	}
	if why, err := m.fetchInput(t.Context(), url, right, final); err != nil || why != "" {
		t.Errorf("the right one: %q, %v", why, err)
	}
	if files, err := entriesBelow(final); err != nil || len(files) != 3 {
		t.Errorf("it has %v, %v", files, err)
	}
}

// What was made is tried: it has to say its version, to unpack itself, and what it
// unpacks has to say the same version.
func TestTry(t *testing.T) {
	const unpack = `mkdir -p "$K3S_DATA_DIR/data/current/bin"; printf '#!/bin/sh\necho k3s version v1.0.0+k3s1.k3s9p.abc\n' >"$K3S_DATA_DIR/data/current/bin/k3s"; chmod +x "$K3S_DATA_DIR/data/current/bin/k3s"`
	whole := (&pin.Set{Name: "k3s"}).Called("v1.0.0+k3s1", "abc")
	for name, test := range map[string]struct{ version, ctr, want string }{
		"as it should be":      {"echo k3s version v1.0.0+k3s1.k3s9p.abc", unpack, ""},
		"another version":      {"echo k3s version dev", unpack, `try k3s --version: it says "k3s version dev\n", not v1.0.0+k3s1.k3s9p.abc`},
		"no archive":           {"echo k3s version v1.0.0+k3s1.k3s9p.abc", "echo nothing to unpack >&2; exit 1", "nothing to unpack"},
		"another server in it": {"echo k3s version v1.0.0+k3s1.k3s9p.abc", strings.Replace(unpack, "abc", "abd", 1), "try the server in k3s: it says "},
		"no server in it":      {"echo k3s version v1.0.0+k3s1.k3s9p.abc", ":", "try the server in k3s: "},
	} {
		dir := t.TempDir()
		program := "#!/bin/sh\ncase $1 in --version) " + test.version + ";; *) " + test.ctr + ";; esac\n"
		if err := os.WriteFile(filepath.Join(dir, "k3s"), []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
		b := At(t.TempDir(), command.Runner{UI: progress.New(false)})
		err := b.try(t.Context(), whole, Compiled{Dir: dir, Outputs: []record.Output{{Path: "k3s"}}})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

// auto takes kubernetes where a module of k3s cannot be had, and says which; but not
// where it could be had and is wrong.
func TestK3sAuto(t *testing.T) {
	kubernetes := func(m *made) {
		m.write("repository/build/kubernetes/build.yaml", "distributions: [kubernetes]\nmodule: github.com/opencontainers/runc\nprograms:\n- {name: runc, package: github.com/opencontainers/runc}\n")
		m.write("repository/build/kubernetes/go.mod", "module k3s9p/build/kubernetes\n\ngo 1.26\n\nrequire github.com/opencontainers/runc v1.4.2\n")
		m.write("repository/build/kubernetes/go.sum", m.goSum())
	}
	t.Run("refused", func(t *testing.T) {
		m := makeK3s(t, nil)
		kubernetes(m)
		if err := os.RemoveAll(m.path("proxy", "github.com", "k3s-io", "kubernetes")); err != nil {
			t.Fatal(err)
		}
		selection, err := m.Selection(context.Background(), "auto")
		if err != nil {
			t.Fatal(err)
		}
		if selection.Distribution != "kubernetes" || !strings.Contains(selection.Why, "github.com/k3s-io/kubernetes v1.36.2-k3s1 cannot be fetched: ") {
			t.Errorf("auto took %s because %q", selection.Distribution, selection.Why)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		m := makeK3s(t, nil)
		kubernetes(m)
		m.write("repository/build/k3s/go.sum", strings.Replace(m.goSum(), m.sums["github.com/k3s-io/k3s "+k3sVersion], "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1))
		if selection, err := m.Selection(context.Background(), "auto"); err == nil || !strings.Contains(err.Error(), "checksum mismatch") {
			t.Errorf("auto took %s, %v", selection.Distribution, err)
		}
	})
	t.Run("there", func(t *testing.T) {
		m := makeK3s(t, nil)
		kubernetes(m)
		selection, err := m.Selection(context.Background(), "auto")
		if err != nil || selection.Distribution != "k3s" || len(selection.Sets) != 4 {
			t.Errorf("auto took %s with %d sets, %v", selection.Distribution, len(selection.Sets), err)
		}
	})
}
