package mage

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/goproxytest"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"k3s9p/internal/rmtree"
)

// mage is the compiled magefile, and proxy the address of the module proxy.
var mage, proxy string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "k3s9p-mage-")
	if err != nil {
		panic(err)
	}
	mage = filepath.Join(dir, "mage")
	build := exec.Command("go", "tool", "mage", "-compile", mage)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "compile the magefile: %v\n%s", err, out)
		os.Exit(1)
	}
	// A user that is not root runs it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	modules, err := goproxytest.NewServer(filepath.Join("testdata", "mod"), "")
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(moods(modules.URL))
	proxy = server.URL
	code := m.Run()
	server.Close()
	modules.Close()
	rmtree.Tree(dir)
	os.Exit(code)
}

// moods serves the modules under /mod as goproxytest does, refuses
// example.com/refused, and holds the zip of example.com/slow back until the file
// that the proxy's path names exists: GOPROXY=$PROXY/hold/<file>/mod.
func moods(modules string) http.Handler {
	target, err := url.Parse(strings.TrimSuffix(modules, "/mod"))
	if err != nil {
		panic(err)
	}
	through := httputil.NewSingleHostReverseProxy(target)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		held := ""
		if rest, ok := strings.CutPrefix(r.URL.Path, "/hold/"); ok {
			var path string
			held, path, _ = strings.Cut(rest, "/mod/")
			r.URL.Path = "/mod/" + path
		}
		if strings.Contains(r.URL.Path, "/example.com/refused/") {
			http.Error(w, "This module version is not available.", http.StatusForbidden)
			return
		}
		if held != "" && strings.HasSuffix(r.URL.Path, "/example.com/slow/@v/v1.0.0.zip") {
			for {
				if _, err := os.Stat("/" + held); err == nil {
					break
				}
				select {
				case <-r.Context().Done():
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		}
		through.ServeHTTP(w, r)
	})
}

func TestScripts(t *testing.T) {
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			repo := filepath.Join(env.WorkDir, "repo")
			if err := os.CopyFS(repo, os.DirFS(filepath.Join("testdata", "repo"))); err != nil {
				return err
			}
			env.Cd = repo
			env.Setenv("PATH", filepath.Dir(mage)+string(filepath.ListSeparator)+os.Getenv("PATH"))
			env.Setenv("GOCACHE", strings.TrimSpace(string(cache)))
			env.Setenv("GOMODCACHE", filepath.Join(env.WorkDir, "modcache"))
			env.Setenv("GOFLAGS", "-modcacherw")
			env.Setenv("GONOSUMDB", "*")
			env.Setenv("MAGE", mage)
			env.Setenv("PROXY", proxy)
			env.Setenv("GOPROXY", proxy+"/mod")
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GIT_AUTHOR_NAME", "somebody")
			env.Setenv("GIT_AUTHOR_EMAIL", "somebody@localhost")
			env.Setenv("GIT_COMMITTER_NAME", "somebody")
			env.Setenv("GIT_COMMITTER_EMAIL", "somebody@localhost")
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"replace":  replace,
			"tmpfs":    tmpfs,
			"remount":  remount,
			"giveaway": giveaway,
			"tamper":   tamper,
			"await":    await,
			"opened":   opened,
			"keep":     keep,
			"same":     same,
			"signal":   signal,
		},
	})
}

// replace FILE OLD NEW changes the one occurrence of OLD.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	text := ts.ReadFile(args[0])
	if n := strings.Count(text, args[1]); n != 1 {
		ts.Fatalf("%s has %q %d times", args[0], args[1], n)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(text, args[1], args[2], 1)), 0o644))
}

// tmpfs DIR SIZE mounts a small filesystem for the rest of the script.
func tmpfs(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// remount DIR makes a mount read-only.
func remount(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(syscall.Mount("", ts.MkAbs(args[0]), "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
}

// tamper ZIP puts another module zip into the place of one.
func tamper(ts *testscript.TestScript, neg bool, args []string) {
	var data bytes.Buffer
	archive := zip.NewWriter(&data)
	file, err := archive.Create("example.com/lib@v1.0.0/lib.go")
	ts.Check(err)
	_, err = file.Write([]byte("package lib\n"))
	ts.Check(err)
	ts.Check(archive.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data.Bytes(), 0o644))
}

// giveaway makes the script's directory that of the user nobody.
func giveaway(ts *testscript.TestScript, neg bool, args []string) {
	work := ts.Getenv("WORK")
	ts.Check(filepath.WalkDir(work, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 65534, 65534)
	}))
	for dir := work; dir != os.TempDir(); dir = filepath.Dir(dir) {
		ts.Check(os.Chmod(dir, 0o755))
	}
}

// waits is how long a script waits for what does happen.
const waits = time.Minute

// await FILE waits until a file exists, or, with !, does not.
func await(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(waits); ; time.Sleep(5 * time.Millisecond) {
		found, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		if (len(found) == 0) == neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s did not come within %v", args[0], waits)
		}
	}
}

// opened FILE waits until somebody opens a file (inotify(7)): who waits for a lock does so
// again and again, and who has it does not.
func opened(ts *testscript.TestScript, neg bool, args []string) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	ts.Check(err)
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	_, err = unix.InotifyAddWatch(fd, ts.MkAbs(args[0]), unix.IN_OPEN)
	ts.Check(err)
	ts.Check(events.SetReadDeadline(time.Now().Add(waits)))
	if _, err := events.Read(make([]byte, unix.SizeofInotifyEvent)); err != nil {
		ts.Fatalf("%s was not opened: %v", args[0], err)
	}
}

// keep DIR and same DIR compare a directory, byte by byte, with what it was.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.WriteFile(filepath.Join(ts.Getenv("WORK"), "kept"), []byte(content(ts, args[0])), 0o644))
}

func same(ts *testscript.TestScript, neg bool, args []string) {
	before, err := os.ReadFile(filepath.Join(ts.Getenv("WORK"), "kept"))
	ts.Check(err)
	if (string(before) == content(ts, args[0])) == neg {
		ts.Fatalf("%s: unchanged is %v", args[0], neg)
	}
}

func content(ts *testscript.TestScript, dir string) string {
	var all strings.Builder
	root := ts.MkAbs(dir)
	if _, err := os.Stat(root); err != nil {
		return "absent"
	}
	ts.Check(filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&all, "%s %v\n", path, entry.Type())
		if entry.Type().IsRegular() {
			data, err := os.ReadFile(path)
			fmt.Fprintf(&all, "%q\n", data)
			return err
		}
		return nil
	}))
	return all.String()
}

// signal NAME FILE sends SIGINT or SIGKILL to the process that the lock names.
func signal(ts *testscript.TestScript, neg bool, args []string) {
	var pid int
	_, rest, _ := strings.Cut(ts.ReadFile(args[1]), "process ")
	if _, err := fmt.Sscanf(rest, "%d", &pid); err != nil {
		ts.Fatalf("%s names no process: %v", args[1], err)
	}
	number, ok := map[string]syscall.Signal{"INT": syscall.SIGINT, "KILL": syscall.SIGKILL}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	ts.Check(syscall.Kill(pid, number))
}
