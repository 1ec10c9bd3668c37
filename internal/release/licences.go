package release

import (
	"archive/zip"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/github/go-spdx/v2/spdxexp"
	classifier "github.com/google/licenseclassifier/v2"
	"github.com/google/licenseclassifier/v2/assets"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/sync/errgroup"

	"k3s9p/internal/hint"
)

// licence is what a component may be used under.
type licence struct {
	// expression is of SPDX identifiers (https://spdx.org/licenses/), or NOASSERTION.
	expression string
	texts      []string
}

// noAssertion says that nobody has said.
const noAssertion = "NOASSERTION"

// licencesOf reads the licences of components out of the sources that they were made
// of: a module's is the zip with the sum that the build has checked.
func licencesOf(ctx context.Context, root string, components []component) (map[string]licence, error) {
	identify, err := identifier()
	if err != nil {
		return nil, err
	}
	where, err := sourceDirs(ctx, root)
	if err != nil {
		return nil, err
	}
	found := make(map[string]licence)
	var guard sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, c := range components {
		group.Go(func() error {
			texts, err := where.texts(ctx, c)
			if err != nil {
				return fmt.Errorf("read the licence of %s %s: %w", c.name, c.version, err)
			}
			if len(texts) == 0 {
				return hint.Add(fmt.Errorf("%s %s has no file with a licence", c.name, c.version), "do not link it, or find out what it may be used under")
			}
			guard.Lock()
			defer guard.Unlock()
			expression, known := ofSystem[c.name]
			if !known {
				expression = identify(texts)
			}
			found[c.purl] = licence{expression: expression, texts: texts}
			return nil
		})
	}
	return found, group.Wait()
}

// ofSystem are the licences of the libraries of the system: what Debian says about a
// package is also about files that are in no library.
var ofSystem = map[string]string{
	"libc6-dev":             "LGPL-2.1-or-later",
	"libc6-dev-arm64-cross": "LGPL-2.1-or-later",
	"libseccomp-dev":        "LGPL-2.1-only",
}

// sources are where the sources of components are on this machine.
type sources struct{ goroot, modcache, repository string }

func sourceDirs(ctx context.Context, root string) (sources, error) {
	dirs, err := output(ctx, "go", "env", "GOROOT", "GOMODCACHE")
	if err != nil {
		return sources{}, err
	}
	goroot, modcache, _ := strings.Cut(dirs, "\n")
	return sources{goroot, modcache, root}, nil
}

// texts are the files about the licence of a component.
func (s sources) texts(ctx context.Context, c component) ([]string, error) {
	switch {
	case strings.HasPrefix(c.purl, systemPURL):
		return readTexts(filepath.Join("/usr/share/doc", c.name, "copyright"))
	case c.name == "stdlib":
		return readTexts(filepath.Join(s.goroot, "LICENSE"), filepath.Join(s.goroot, "..", "..", "doc", filepath.Base(s.goroot), "copyright"))
	}
	name, err := s.zip(ctx, c)
	if err != nil {
		return nil, err
	}
	return zipTexts(name, c)
}

// readTexts reads the first of some files that exists.
func readTexts(names ...string) ([]string, error) {
	var errs error
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err == nil {
			return []string{string(data)}, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

// zip is the zip of a module in the cache, fetched if the cache was emptied.
func (s sources) zip(ctx context.Context, c component) (string, error) {
	path, err := module.EscapePath(c.name)
	if err != nil {
		return "", err
	}
	version, err := module.EscapeVersion(c.version)
	if err != nil {
		return "", err
	}
	name := filepath.Join(s.modcache, "cache", "download", path, "@v", version+".zip")
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		if _, err := output(ctx, "go", "-C", s.repository, "mod", "download", c.name+"@"+c.version); err != nil {
			return "", err
		}
	}
	if c.sum == "" {
		return name, nil
	}
	sum, err := dirhash.HashZip(name, dirhash.Hash1)
	if err == nil && sum != c.sum {
		err = hint.Add(fmt.Errorf("%s has %s, and what was built had %s", name, sum, c.sum), "go clean -modcache, then build again")
	}
	return name, err
}

// licenceFile is how files about a licence are called, at the top of a module.
var licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]es?|copying|notice|patents)([.-][^/]*)?$`)

func zipTexts(name string, c component) ([]string, error) {
	archive, err := zip.OpenReader(name)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	var texts []string
	for _, file := range archive.File {
		relative := strings.TrimPrefix(file.Name, c.name+"@"+c.version+"/")
		if !licenceFile.MatchString(relative) || path.Ext(relative) == ".go" {
			continue
		}
		text, err := readMember(file)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

func readMember(file *zip.File) (string, error) {
	content, err := file.Open()
	if err != nil {
		return "", err
	}
	defer content.Close()
	data, err := io.ReadAll(content)
	return string(data), err
}

// classify knows the texts of licences; reading them takes a while.
var classify = sync.OnceValues(assets.DefaultClassifier)

// identifier returns a function that names the licences in some texts, or says that it
// cannot: SPDX does not have every name that the classifier has.
func identifier() (func([]string) string, error) {
	known, err := classify()
	if err != nil {
		return nil, fmt.Errorf("load the texts of licences: %w", err)
	}
	var guard sync.Mutex
	remembered := make(map[string][]string)
	return func(texts []string) string {
		guard.Lock()
		defer guard.Unlock()
		var names []string
		for _, text := range texts {
			if _, ok := remembered[text]; !ok {
				remembered[text] = namesIn(known, text)
			}
			names = append(names, remembered[text]...)
		}
		slices.Sort(names)
		if known, _ := spdxexp.ValidateLicenses(names); !known {
			return noAssertion
		}
		return cmp.Or(strings.Join(slices.Compact(names), " AND "), noAssertion)
	}, nil
}

func namesIn(known *classifier.Classifier, text string) []string {
	var names []string
	for _, match := range known.Match([]byte(text)).Matches {
		if match.MatchType == "License" {
			names = append(names, match.Name)
		}
	}
	return names
}

// licenceList prints the licences of components, each text once.
func licenceList(components []component, licences map[string]licence) string {
	users := make(map[string][]string) // by text
	var texts []string
	for _, c := range components {
		for _, text := range licences[c.purl].texts {
			if users[text] == nil {
				texts = append(texts, text)
			}
			users[text] = append(users[text], fmt.Sprintf("%s %s (%s)", c.name, c.version, licences[c.purl].expression))
		}
	}
	var all strings.Builder
	all.WriteString("What k3s9p is linked from, and the licences of that. k3s9p itself is under the\nApache License 2.0.\n")
	for _, text := range texts {
		fmt.Fprintf(&all, "\n%s\n\n%s\n\n%s\n", strings.Repeat("=", 80), strings.Join(users[text], "\n"), strings.TrimSpace(text))
	}
	return all.String()
}
