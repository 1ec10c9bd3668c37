package release

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// page is a release page with one small release on it, and a machine that installs
// from it.
type page struct {
	t      *testing.T
	server *httptest.Server
	// answer stands in for the server where it is not nil and returns true.
	answer  func(http.ResponseWriter, *http.Request) bool
	release string // the directory of v1.2.3
	script  string
	prefix  string
	env     []string
}

const newProgram, oldProgram = "#!/bin/sh\necho k3s9p v1.2.3\n", "#!/bin/sh\necho old\n"

func newPage(t *testing.T) *page {
	t.Helper()
	dir := t.TempDir()
	p := &page{t: t, release: filepath.Join(dir, "page", "v1.2.3"), script: filepath.Join(dir, "install.sh"), prefix: filepath.Join(dir, "prefix")}
	p.must(os.MkdirAll(p.release, 0o755))
	p.must(os.MkdirAll(filepath.Join(p.prefix, "bin"), 0o755))
	files := http.FileServer(http.Dir(filepath.Dir(p.release)))
	p.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.answer == nil || !p.answer(w, r) {
			files.ServeHTTP(w, r)
		}
	}))
	p.server.Config.ErrorLog = nil
	t.Cleanup(p.server.Close)
	authority := filepath.Join(dir, "ca.crt")
	p.must(os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw}), 0o644))
	wgetrc := filepath.Join(dir, "wgetrc")
	p.must(os.WriteFile(wgetrc, []byte("ca_certificate = "+authority+"\n"), 0o644))
	p.env = []string{"CURL_CA_BUNDLE=" + authority, "WGETRC=" + wgetrc, "PREFIX=" + p.prefix, "HOME=" + dir}

	r := newRepository(t)
	p.must(os.WriteFile(filepath.Join(p.release, programName(runtime.GOARCH)), []byte(newProgram), 0o644))
	p.seal(r)
	signers, err := readSigners(r.root)
	p.must(err)
	script, err := install(Source{Version: "v1.2.3"}, p.server.URL, signers)
	p.must(err)
	p.must(os.WriteFile(p.script, []byte(script), 0o644))
	p.must(os.WriteFile(p.installed(), []byte(oldProgram), 0o755))
	return p
}

// seal writes the sums of what is there, signed by the maintainer of a repository.
func (p *page) seal(r *repository) {
	p.t.Helper()
	sums, err := sumAll(p.release, []string{programName(runtime.GOARCH)})
	p.must(err)
	key, err := keyOf(r.getenv)
	p.must(err)
	signature, err := sign([]byte(sums.String()), key, Signers{key.PublicKey()})
	p.must(err)
	p.must(write(p.release, sumsName, []byte(sums.String())))
	p.must(write(p.release, signatureName, signature))
}

func (p *page) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *page) installed() string { return filepath.Join(p.prefix, "bin", "k3s9p") }

// tools makes a directory with the programs that the script needs, and a downloader.
func (p *page) tools(downloaders ...string) string {
	p.t.Helper()
	dir := p.t.TempDir()
	for _, tool := range append([]string{"sh", "uname", "sed", "tr", "tail", "cut", "mktemp", "mkdir", "chmod", "mv", "rm", "grep", "sha256sum", "ssh-keygen"}, downloaders...) {
		path, err := exec.LookPath(tool)
		if err != nil {
			p.t.Skipf("this machine has no %s", tool)
		}
		p.must(os.Symlink(path, filepath.Join(dir, tool)))
	}
	return dir
}

func (p *page) command(tools string, env ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(tools, "sh"), p.script)
	cmd.Env = append(append(p.env, "PATH="+tools), env...)
	return cmd
}

// succeeds installs the new program.
func (p *page) succeeds(tools string, env ...string) string {
	p.t.Helper()
	out, err := p.command(tools, env...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("install.sh: %v\n%s", err, out)
	}
	p.holds(newProgram)
	return string(out)
}

// fails says what is wrong and leaves the old program, and nothing else.
func (p *page) fails(want, tools string, env ...string) {
	p.t.Helper()
	out, err := p.command(tools, env...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), want) {
		p.t.Errorf("install.sh: %v, and what it says is not about %q:\n%s", err, want, out)
	}
	p.holds(oldProgram)
}

func (p *page) holds(content string) {
	p.t.Helper()
	got, err := os.ReadFile(p.installed())
	p.must(err)
	if string(got) != content {
		p.t.Errorf("installed is %q, not %q", got, content)
	}
	if info, err := os.Stat(p.installed()); err != nil || info.Mode() != 0o755 {
		p.t.Errorf("it has the mode %v (%v)", info.Mode(), err)
	}
	names, err := list(filepath.Dir(p.installed()))
	p.must(err)
	if len(names) != 1 {
		p.t.Errorf("beside it are %q", names)
	}
}

// on answers requests for a file.
func on(name string, answer func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/"+name) {
			return false
		}
		answer(w, r)
		return true
	}
}

func TestInstall(t *testing.T) {
	program := programName(runtime.GOARCH)
	for _, downloader := range []string{"curl", "wget"} {
		for _, c := range []struct {
			name string
			run  func(t *testing.T, p *page, tools string)
		}{
			{"installs", func(t *testing.T, p *page, tools string) {
				out := p.succeeds(tools)
				if !strings.Contains(out, "k3s9p v1.2.3 is in "+p.installed()) || !strings.Contains(out, "next: "+p.installed()+" up") {
					t.Errorf("it says\n%s", out)
				}
			}},
			{"makes PREFIX/bin", func(t *testing.T, p *page, tools string) {
				p.prefix = filepath.Join(p.prefix, "deep", "er")
				p.succeeds(tools, "PREFIX="+p.prefix)
			}},
			{"another URL and VERSION", func(t *testing.T, p *page, tools string) {
				r := newRepository(t)
				signers, err := readSigners(r.root)
				p.must(err)
				script, err := install(Source{Version: "v1.2.4"}, "https://127.0.0.1:1", signers)
				p.must(err)
				p.must(os.WriteFile(p.script, []byte(script), 0o644))
				p.seal(r)
				p.fails("is there a release v1.2.4?", tools)
				p.succeeds(tools, "VERSION=v1.2.3", "URL="+p.server.URL+"/")
			}},
			{"an older release in the place of a newer one", func(t *testing.T, p *page, tools string) {
				p.must(os.Rename(p.release, filepath.Join(filepath.Dir(p.release), "v1.2.4")))
				p.fails("is there a release v1.2.3?", tools)
				p.fails("what is served as v1.2.4 says that it is v1.2.3", tools, "VERSION=v1.2.4")
			}},
			{"an ssh-keygen that verifies nothing", func(t *testing.T, p *page, tools string) {
				p.must(os.Remove(filepath.Join(tools, "ssh-keygen")))
				p.must(os.WriteFile(filepath.Join(tools, "ssh-keygen"), []byte("#!/bin/sh\necho 'unknown option -- Y' >&2\nexit 1\n"), 0o755))
				if out := p.succeeds(tools); !strings.Contains(out, "the signature is not checked, only the checksum") {
					t.Errorf("it says\n%s", out)
				}
			}},
			{"a truncated download", func(t *testing.T, p *page, tools string) {
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Length", fmt.Sprint(len(newProgram)))
					io.WriteString(w, newProgram[:10])
				})
				p.fails("could not be downloaded", tools)
			}},
			{"a shortened file", func(t *testing.T, p *page, tools string) {
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, newProgram[:10]) })
				p.fails("and the release says", tools)
			}},
			{"an altered file", func(t *testing.T, p *page, tools string) {
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) {
					io.WriteString(w, strings.Replace(newProgram, "v1.2.3", "v6.6.6", 1))
				})
				p.fails("and the release says", tools)
			}},
			{"an altered file with its sum", func(t *testing.T, p *page, tools string) {
				p.must(write(p.release, program, []byte("#!/bin/sh\necho bad\n")))
				sums, err := sumAll(p.release, []string{program})
				p.must(err)
				p.must(write(p.release, sumsName, []byte(sums.String())))
				p.fails("the signature of v1.2.3 is wrong", tools)
			}},
			{"signed by somebody else", func(t *testing.T, p *page, tools string) {
				p.seal(newRepository(t))
				p.fails("the signature of v1.2.3 is wrong", tools)
			}},
			{"not signed", func(t *testing.T, p *page, tools string) {
				p.must(os.Remove(filepath.Join(p.release, signatureName)))
				p.fails("v1.2.3 is not signed", tools)
			}},
			{"no ssh-keygen", func(t *testing.T, p *page, tools string) {
				p.must(os.Remove(filepath.Join(tools, "ssh-keygen")))
				if out := p.succeeds(tools); !strings.Contains(out, "the signature is not checked") {
					t.Errorf("it says\n%s", out)
				}
			}},
			{"a server that stops", func(t *testing.T, p *page, tools string) {
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Length", fmt.Sprint(len(newProgram)))
					io.WriteString(w, newProgram[:10])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
				p.fails("could not be downloaded", tools, "K3S9P_INSTALL_PATIENCE=1")
			}},
			{"a redirect to https", func(t *testing.T, p *page, tools string) {
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) {
					if r.URL.RawQuery == "" {
						http.Redirect(w, r, p.server.URL+r.URL.Path+"?moved", http.StatusFound)
						return
					}
					io.WriteString(w, newProgram)
				})
				p.succeeds(tools)
			}},
			{"a redirect to http", func(t *testing.T, p *page, tools string) {
				plain := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(p.release))))
				defer plain.Close()
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) {
					http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusFound)
				})
				// curl says it, or the script itself.
				p.fails(map[string]string{"curl": "Protocol \"http\" not supported", "wget": plain.URL + "/v1.2.3/" + program + " is not https"}[downloader], tools)
			}},
			{"no such architecture", func(t *testing.T, p *page, tools string) {
				p.must(write(p.release, sumsName, []byte(strings.Repeat("0", 64)+"  k3s9p-linux-mips\n")))
				p.must(os.Remove(filepath.Join(tools, "ssh-keygen")))
				p.fails("v1.2.3 has no "+program, tools)
			}},
			{"http", func(t *testing.T, p *page, tools string) {
				p.fails("is not https", tools, "URL=http://example.com/releases")
				p.fails("is not https", tools, "URL=http://127.0.0.1:1/releases")
				p.fails("is not https", tools, "URL=ftp://example.com/releases")
			}},
			{"http of this machine, for tests", func(t *testing.T, p *page, tools string) {
				plain := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(p.release))))
				defer plain.Close()
				p.succeeds(tools, "URL="+plain.URL, "K3S9P_INSTALL_HTTP_LOOPBACK=1")
			}},
			{"no version", func(t *testing.T, p *page, tools string) {
				p.fails("VERSION=latest is no version", tools, "VERSION=latest")
			}},
			{"PREFIX that cannot be written", func(t *testing.T, p *page, tools string) {
				p.fails("/proc/nowhere/bin cannot be written", tools, "PREFIX=/proc/nowhere")
			}},
			{"behind a proxy", func(t *testing.T, p *page, tools string) {
				var tunnels atomic.Int32
				proxy := httptest.NewServer(tunnel(&tunnels))
				defer proxy.Close()
				p.succeeds(tools, "https_proxy="+proxy.URL)
				if tunnels.Load() == 0 {
					t.Error("nothing went by the proxy")
				}
			}},
			{"interrupted", func(t *testing.T, p *page, tools string) {
				asked := make(chan bool, 8)
				p.answer = on(program, func(w http.ResponseWriter, r *http.Request) {
					asked <- true
					<-r.Context().Done()
				})
				cmd := p.command(tools)
				cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
				p.must(cmd.Start())
				<-asked
				p.must(syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM))
				if err := cmd.Wait(); err == nil {
					t.Error("it says that it has installed the program")
				}
				p.holds(oldProgram)
			}},
		} {
			t.Run(downloader+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				p := newPage(t)
				c.run(t, p, p.tools(downloader))
			})
		}
	}
}

// tunnel is a proxy for https.
func tunnel(tunnels *atomic.Int32) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		there, err := net.Dial("tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		defer there.Close()
		tunnels.Add(1)
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(there, here) }()
		_, _ = io.Copy(here, there)
	})
}

func TestInstallNeeds(t *testing.T) {
	p := newPage(t)
	p.fails("there is neither curl nor wget", p.tools())

	// wget of BusyBox does not check certificates.
	busybox := p.tools()
	p.must(os.WriteFile(filepath.Join(busybox, "wget"), []byte("#!/bin/sh\necho 'BusyBox v1.36.1 multi-call binary.'\n"), 0o755))
	p.fails("wget is not that of GNU", busybox)

	noSums := p.tools("curl")
	p.must(os.Remove(filepath.Join(noSums, "sha256sum")))
	p.fails("there is neither sha256sum nor shasum nor openssl", noSums)
	for _, other := range []string{"shasum", "openssl"} {
		if path, err := exec.LookPath(other); err == nil {
			p.must(os.Symlink(path, filepath.Join(noSums, other)))
			if other == "shasum" { // a program in Perl
				continue
			}
			p.succeeds(noSums)
			p.must(os.WriteFile(p.installed(), []byte(oldProgram), 0o755))
		}
	}

	for system, want := range map[string]string{"Darwin arm64": "k3s9p runs on Linux, and this is Darwin", "Linux riscv64": "there is no k3s9p for riscv64"} {
		tools := p.tools("curl")
		kernel, machine, _ := strings.Cut(system, " ")
		p.must(os.Remove(filepath.Join(tools, "uname")))
		p.must(os.WriteFile(filepath.Join(tools, "uname"), []byte("#!/bin/sh\n[ \"$1\" = -s ] && echo "+kernel+" || echo "+machine+"\n"), 0o755))
		p.fails(want, tools)
	}
}

// A script of which only a part has arrived does nothing.
func TestInstallInPart(t *testing.T) {
	p := newPage(t)
	tools := p.tools("curl")
	whole, err := os.ReadFile(p.script)
	p.must(err)
	for _, share := range []int{10, 50, 90, 99} {
		p.must(os.WriteFile(p.script, whole[:len(whole)*share/100], 0o644))
		_, _ = p.command(tools).CombinedOutput()
		p.holds(oldProgram)
	}
}

// A release without an address, and without a key, says so.
func TestInstallWithoutHome(t *testing.T) {
	p := newPage(t)
	script, err := install(Source{Version: "v1.2.3"}, "", nil)
	p.must(err)
	p.must(os.WriteFile(p.script, []byte(script), 0o644))
	p.fails("was made without the address of a release page", p.tools("curl"))
	if out := p.succeeds(p.tools("curl"), "URL="+p.server.URL); !strings.Contains(out, "names no key: the signature is not checked") {
		t.Errorf("it says\n%s", out)
	}
	for _, bad := range []string{"http://example.com", "https://", "example.com", "https://example.com/'; rm -rf /; '"} {
		if _, err := install(Source{Version: "v1.2.3"}, bad, nil); err == nil {
			t.Errorf("%s=%s is accepted", urlVariable, bad)
		}
	}
	if u, err := url.Parse(p.server.URL); err != nil || u.Scheme != "https" {
		t.Errorf("the test does not use https: %v", err)
	}
}
