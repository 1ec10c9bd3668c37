package release

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k3s9p/internal/hint"
)

// changelogName says the version.
const changelogName = "CHANGELOG.md"

// section is the heading of a release in a changelog.
var section = regexp.MustCompile(`(?m)^## \[(\d+\.\d+\.\d+(?:-[0-9A-Za-z.]+)?)\] - \d{4}-\d{2}-\d{2}$`)

// Version is the one that the newest section of a changelog says, with a v in front.
func Version(changelog []byte) (string, error) {
	match := section.FindSubmatch(changelog)
	if match == nil {
		return "", hint.Add(fmt.Errorf("%s says no version", changelogName), "its newest section begins with a line like: ## [0.1.0] - 2026-11-25")
	}
	return "v" + string(match[1]), nil
}

// Source is the state of the repository that a release is made of.
type Source struct {
	Version string // v0.1.0, or v0.1.0-snapshot.0123456789ab[.dirty]
	Commit  string // 40 hexadecimal digits
	Dirty   bool   // there are changes that no commit has
	Date    time.Time
}

// Snapshot reports whether the version is one that is not to be published.
func (s Source) Snapshot() bool { return strings.Contains(s.Version, "-snapshot.") }

// clean is the state of the repository in root, for a release that is published.
func clean(ctx context.Context, root string) (Source, error) {
	s, changes, err := sourceOf(ctx, root)
	if err != nil {
		return s, err
	}
	if len(changes) > 0 {
		return s, hint.Add(fmt.Errorf("a release is made of a commit, and these files are not as in %.12s:\n%s", s.Commit, strings.Join(shorten(changes, 20), "\n")),
			"commit or remove them; -snapshot makes a release of them that says so")
	}
	return s, tagged(ctx, root, s)
}

// snapshot is the state of the repository in root as it is, committed or not.
func snapshot(ctx context.Context, root string) (Source, error) {
	s, changes, err := sourceOf(ctx, root)
	if err != nil {
		return s, err
	}
	s.Dirty = len(changes) > 0
	s.Version += "-snapshot." + s.Commit[:12]
	if s.Dirty {
		s.Version += ".dirty"
	}
	return s, nil
}

// sourceOf returns also which files have changes.
func sourceOf(ctx context.Context, root string) (Source, []string, error) {
	var s Source
	changelog, err := os.ReadFile(filepath.Join(root, changelogName))
	if err != nil {
		return s, nil, fmt.Errorf("look for the version of the release: %w", err)
	}
	if s.Version, err = Version(changelog); err != nil {
		return s, nil, err
	}
	head, err := git(ctx, root, "log", "-1", "--format=%H %ct")
	if err != nil {
		return s, nil, hint.Add(err, "a release names the commit that it is made of: work in a clone of the repository")
	}
	commit, date, _ := strings.Cut(head, " ")
	s.Commit = commit
	seconds, err := strconv.ParseInt(cmp.Or(os.Getenv("SOURCE_DATE_EPOCH"), date), 10, 64)
	if err != nil {
		return s, nil, fmt.Errorf("SOURCE_DATE_EPOCH is %q, not a number of seconds", os.Getenv("SOURCE_DATE_EPOCH"))
	}
	s.Date = time.Unix(seconds, 0).UTC()
	status, err := git(ctx, root, "status", "--porcelain")
	return s, lines(status), err
}

// tagged refuses a commit whose tag is another version, and a version whose tag is on
// another commit. A commit without a tag is one that is to get it.
func tagged(ctx context.Context, root string, s Source) error {
	here, err := git(ctx, root, "tag", "--points-at", "HEAD", "--list", "v*")
	if err != nil {
		return err
	}
	if tags := lines(here); len(tags) > 0 {
		if !slices.Contains(tags, s.Version) {
			return hint.Add(fmt.Errorf("the commit %.12s has the tag %s, and %s says %s", s.Commit, strings.Join(tags, ", "), changelogName, s.Version),
				"the version is said by the newest section of %s: mend that in a new commit, or remove the tag", changelogName)
		}
		return nil
	}
	elsewhere, err := git(ctx, root, "tag", "--list", s.Version)
	if err == nil && elsewhere != "" {
		err = hint.Add(fmt.Errorf("%s is the tag of another commit than %.12s", s.Version, s.Commit),
			"a new release needs a new section in %s; -snapshot makes one that is not to be published", changelogName)
	}
	return err
}

func git(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], root, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimRight(string(out), "\n"), nil
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func shorten(list []string, most int) []string {
	if len(list) <= most {
		return list
	}
	return append(slices.Clone(list[:most]), fmt.Sprintf("… and %d more", len(list)-most))
}
