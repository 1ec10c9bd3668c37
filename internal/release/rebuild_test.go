package release

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"k3s9p/internal/progress"
	"k3s9p/internal/record"
)

// remake makes a release in a clone as the targets do, of programs that were built once.
func (r *repository) remake(url string) func(context.Context, string, Recipe) error {
	return func(ctx context.Context, clone string, recipe Recipe) error {
		from, err := dist()
		if err != nil {
			return err
		}
		if err := os.CopyFS(filepath.Join(clone, "dist"), os.DirFS(from)); err != nil {
			return err
		}
		home := recipe.URL
		if url != "" {
			home = url
		}
		m := &Maker{Root: clone, Progress: progress.NewPlain(io.Discard), Getenv: func(name string) string {
			return map[string]string{urlVariable: home}[name]
		}}
		check := m.Check
		if recipe.Snapshot {
			check = m.CheckSnapshot
		}
		if err := check(ctx); err != nil {
			return err
		}
		return m.Make(ctx, filepath.Join(clone, "dist"))
	}
}

// rebuild verifies dist/release/, and makes it again.
func (r *repository) rebuild(url string) (Verified, error) {
	v := Verifier{Root: r.root, Progress: progress.NewPlain(io.Discard), Getenv: r.getenv, Again: r.remake(url)}
	return v.Verify(context.Background(), filepath.Join(r.root, Dir))
}

func TestRebuild(t *testing.T) {
	r := newRepository(t)
	refused := func(when, url, want string) {
		t.Helper()
		if _, err := r.rebuild(url); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error is %v, not about %q", when, err, want)
		}
	}
	r.env[urlVariable] = "https://example.com/releases"
	r.write("dist/reports/"+experimentName, "what only this machine has seen\n")
	r.release()
	refused("without its tag", "", "v1.2.3 is not in "+r.root)
	r.git("tag", "v1.2.3")
	verified, err := r.rebuild("")
	if err != nil || !verified.Rebuilt || !strings.Contains(verified.String(), "made again with the same bytes") {
		t.Errorf("a release that can be made again is %+v, %v", verified, err)
	}
	refused("made otherwise", "https://example.com/others", installerName+" has the SHA-256")
	r.commit()
	r.git("tag", "--force", "v1.2.3")
	refused("a tag that was moved", "", "the tag v1.2.3 is on the commit")
}

// A snapshot is of a commit that has no tag, or of none.
func TestRebuildSnapshot(t *testing.T) {
	r := newRepository(t)
	from, err := dist()
	if err != nil {
		t.Fatal(err, from)
	}
	if err := os.CopyFS(filepath.Join(r.root, "dist"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	snapshot := func() {
		t.Helper()
		m := r.maker()
		if err := m.CheckSnapshot(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := m.Make(context.Background(), filepath.Join(r.root, "dist")); err != nil {
			t.Fatal(err)
		}
	}
	snapshot()
	if verified, err := r.rebuild(""); err != nil || !verified.Rebuilt {
		t.Errorf("a snapshot of a commit is %+v, %v", verified, err)
	}
	r.write("new.go", "package new\n")
	snapshot()
	if _, err := r.rebuild(""); err == nil || !strings.Contains(err.Error(), "nobody can make it again") {
		t.Errorf("a snapshot of no commit: %v", err)
	}
}

func TestSameToolchain(t *testing.T) {
	v := Verifier{Root: t.TempDir(), Progress: progress.NewPlain(io.Discard)}
	for _, c := range []struct {
		arch string
		made record.Toolchain
		want string
	}{
		{runtime.GOARCH, record.Toolchain{Go: runtime.Version()}, ""},
		{runtime.GOARCH, record.Toolchain{Go: "go1.26.0"}, "were compiled by go1.26.0, and here is " + runtime.Version()},
		{runtime.GOARCH, record.Toolchain{Go: runtime.Version(), CC: "tcc 0.9"}, `were compiled by "tcc 0.9", and here is "`},
	} {
		err := v.sameToolchain(context.Background(), map[string]record.Build{c.arch: {Toolchain: c.made}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
