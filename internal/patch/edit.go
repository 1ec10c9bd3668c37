package patch

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k3s9p/internal/hint"
	"k3s9p/internal/workdir"
)

// baseTag names the commit of the edit tree on which the series begins, savedTag
// the one at which it stood when it was last generated or saved.
const (
	baseTag  = "k3s9p-base"
	savedTag = "k3s9p-saved"
)

// Checkout makes a git tree of a pristine module: one commit for the source, one
// for the overlay, one per patch. The tree must not exist yet, and source is
// what copies the pristine module into it.
func (s Series) Checkout(ctx context.Context, tree, path, version string, source func(dir string) error) error {
	module := path + " " + version
	if err := source(tree); err != nil {
		return err
	}
	g := git{ctx: ctx, dir: tree}
	g.run("init", "--quiet", "--initial-branch=series")
	g.commit("pristine " + module)
	if err := s.layOverlay(tree); err != nil {
		return err
	}
	g.commit("overlay (edit these files in overlay/, not here)")
	g.run("tag", baseTag)
	for _, p := range s.Patches {
		if g.err != nil {
			break
		}
		if _, err := p.apply(tree, module, s.MadeFor(path, version)); err != nil {
			return err
		}
		header, _, _ := strings.Cut(string(p.Raw), separator)
		g.commit(header)
	}
	g.run("tag", savedTag)
	return g.err
}

// Unsaved returns an error if the edit tree holds work that Save has not written.
func Unsaved(ctx context.Context, tree string) error {
	g := git{ctx: ctx, dir: tree}
	status := g.run("status", "--porcelain")
	changed := g.run("log", "--oneline", savedTag+"..HEAD")
	same := g.run("rev-parse", savedTag+"^{commit}") == g.run("rev-parse", "HEAD")
	if g.err != nil {
		return g.err
	}
	if status == "" && changed == "" && same {
		return nil
	}
	return hint.Add(fmt.Errorf("%s holds changes that are not saved", tree),
		"save them with patch:save, or remove the directory to give them up")
}

// Save regenerates the patches of the series from the commits of an edit tree and
// returns the names of the files that changed. Patches are replaced all or none.
func (s Series) Save(ctx context.Context, tree string) ([]string, error) {
	g := git{ctx: ctx, dir: tree}
	if status := g.run("status", "--porcelain"); g.err == nil && status != "" {
		return nil, hint.Add(fmt.Errorf("%s has changes that are in no commit:\n%s", tree, status),
			"commit them, with a DEP-3 header as the message for a new patch, or with git commit --fixup and git rebase --autosquash %s", baseTag)
	}
	commits := strings.Fields(g.run("rev-list", "--reverse", baseTag+"..HEAD"))
	if g.err != nil {
		return nil, g.err
	}
	files := make(map[string][]byte)
	for i, commit := range commits {
		message := g.run("log", "-1", "--format=%B", commit)
		diff := g.run("diff-tree", "-p", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--unified=3",
			"--diff-algorithm=myers", "--src-prefix=a/", "--dst-prefix=b/", "--end-of-options", commit+"^", commit)
		if g.err != nil {
			return nil, g.err
		}
		raw, err := format(message, diff)
		if err != nil {
			return nil, fmt.Errorf("commit %.12s: %w", commit, err)
		}
		p, err := parse(raw)
		if err != nil {
			return nil, hint.Add(fmt.Errorf("commit %.12s: %w", commit, err),
				"the commit message is the patch's DEP-3 header (%s)", strings.Join(required, ", "))
		}
		if err := s.acceptable(p); err != nil {
			return nil, fmt.Errorf("commit %.12s: %w", commit, err)
		}
		files[slug(i+1, p.Header.Description)] = raw
	}
	changed, err := s.replace(files)
	if err != nil {
		return nil, err
	}
	g.run("tag", "--force", savedTag)
	return changed, g.err
}

// acceptable refuses what belongs into the overlay.
func (s Series) acceptable(p Patch) error {
	overlay, err := s.OverlayFiles()
	if err != nil {
		return err
	}
	for _, f := range p.Files {
		if f.IsNew || f.IsDelete || f.IsRename || f.IsBinary {
			return hint.Add(fmt.Errorf("it adds or removes the file %s%s", f.OldName, f.NewName), "whole files go under overlay/; a patch only hooks them in")
		}
		for _, name := range overlay {
			if name == f.NewName {
				return hint.Add(fmt.Errorf("it changes %s, a file of the overlay", name), "change %s", filepath.Join(s.Overlay, name))
			}
		}
	}
	return nil
}

// replace writes the files that changed and removes the ones that are gone.
func (s Series) replace(files map[string][]byte) ([]string, error) {
	var changed []string
	for name, raw := range files {
		path := filepath.Join(s.Dir, name)
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, raw) {
			continue
		}
		if err := workdir.WriteFile(path, raw); err != nil {
			return nil, err
		}
		changed = append(changed, name)
	}
	for _, p := range s.Patches {
		if _, kept := files[p.Name]; !kept {
			if err := os.Remove(filepath.Join(s.Dir, p.Name)); err != nil {
				return nil, err
			}
			changed = append(changed, p.Name)
		}
	}
	return changed, nil
}

// git runs git in a tree, without the user's settings, until one command fails.
type git struct {
	ctx context.Context
	dir string
	err error
}

func (g *git) run(args ...string) string {
	if g.err != nil {
		return ""
	}
	cmd := exec.CommandContext(g.ctx, "git", args...)
	cmd.Dir = g.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "LC_ALL=C", "GIT_DIR="+filepath.Join(g.dir, ".git"), "GIT_WORK_TREE="+g.dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		g.err = fmt.Errorf("git %s in %s: %w\n%s", args[0], g.dir, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimRight(stdout.String(), "\n") + ending(stdout.Len(), args[0])
}

// ending keeps the last line end of a diff, and of nothing else.
func ending(length int, command string) string {
	if command == "diff-tree" && length > 0 {
		return "\n"
	}
	return ""
}

// commit records everything in the tree, also what upstream's .gitignore hides.
func (g *git) commit(message string) {
	g.run("add", "--all", "--force")
	g.run("-c", "user.name=k3s9p", "-c", "user.email=k3s9p@localhost", "commit", "--quiet", "--allow-empty", "--no-verify",
		"--cleanup=verbatim", "--message", strings.TrimSpace(message))
}
