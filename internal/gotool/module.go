package gotool

import (
	"fmt"
	"regexp"
	"strings"

	"k3s9p/internal/hint"
)

var (
	proxyAnswer = regexp.MustCompile(`(?:([^\s:()]+@v[^\s:()]+)\)?: )?(?:reading|Get) "?(https?://[^\s"]+|file://[^\s"]+)"?: (\d{3}[^\n]*|[^\n]+)`)
	proxyOff    = regexp.MustCompile(`(?:([^\s:()]+@v[^\s:()]+)\)?: )?module lookup disabled by GOPROXY=off`)
	badSum      = regexp.MustCompile(`(?:verifying )?([^\s:]+@v[^\s:/]+(?:/go\.mod)?): checksum mismatch\s+downloaded: (h1:\S+)\s+go\.sum: +(h1:\S+)`)
)

// Unavailable is a module that the module proxy does not give.
type Unavailable struct {
	Module string // with its version
	By     string // whose go.mod pins it: build/k3s; "" for none
	Reason string // is refused by the module proxy: 403 Forbidden
	URL    string // "" where nobody was asked
}

func (u *Unavailable) Error() string {
	text := "module " + u.Module
	if u.By != "" {
		text += ", pinned by " + u.By + ","
	}
	text += " " + u.Reason
	if u.URL != "" {
		text += " (" + u.URL + ")"
	}
	return text
}

// Short is the error without the place where it was looked for.
func (u *Unavailable) Short() string { return u.Module + " " + u.Reason }

// ModuleError says in one line what the go command says in many when it cannot have
// a module that is pinned by the go.mod in a place, build/k3s. The module is "" where only
// the text names it.
func ModuleError(by, module, text string) error {
	if match := badSum.FindStringSubmatch(text); match != nil {
		return hint.Add(fmt.Errorf("module %s: checksum mismatch: the proxy or the module cache has %s, %s/go.sum says %s",
			strings.Replace(match[1], "@", " ", 1), match[2], by, match[3]),
			"either these are not the pinned bytes (go clean -modcache, another GOPROXY) or go.sum was edited; nothing was built from them")
	}
	if match := proxyAnswer.FindStringSubmatch(text); match != nil {
		if match[1] != "" {
			module = strings.Replace(match[1], "@", " ", 1)
		}
		answer := strings.TrimSpace(match[3])
		problem := "cannot be fetched"
		if strings.HasPrefix(answer, "403") || strings.HasPrefix(answer, "404") || strings.HasPrefix(answer, "410") {
			problem = "is refused by the module proxy"
		}
		return hint.Add(&Unavailable{Module: module, By: by, Reason: problem + ": " + answer, URL: match[2]},
			"set GOPROXY to a proxy that can be reached and serves it; its checksum stays pinned in %s/go.sum", by)
	}
	if match := proxyOff.FindStringSubmatch(text); match != nil {
		if match[1] != "" {
			module = strings.Replace(match[1], "@", " ", 1)
		}
		return hint.Add(&Unavailable{Module: module, By: by, Reason: "is not in the module cache, and GOPROXY=off"},
			"set GOPROXY to a proxy that serves it; its checksum stays pinned in %s/go.sum", by)
	}
	text = strings.TrimSpace(strings.ReplaceAll(text, "\n", "\n  "))
	if module == "" {
		return fmt.Errorf("fetch the modules of %s: %s", by, text)
	}
	return fmt.Errorf("fetch module %s of %s: %s", module, by, text)
}
