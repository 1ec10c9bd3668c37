package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k3s9p/internal/hint"
)

// largest is how much is downloaded of one file, in bytes: a release is not that large,
// and who serves it is not trusted yet.
const largest = 1 << 30

// errAbsent is wrapped by the error about a file that a server does not have.
var errAbsent = errors.New("there is no such file")

// download fetches the files of a release that its SHA256SUMS lists, and the signature.
func download(ctx context.Context, address, dir string) error {
	if err := fetch(ctx, address, sumsName, dir); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, sumsName))
	if err != nil {
		return err
	}
	sums, err := parseSums(data)
	if err != nil {
		return err
	}
	for _, name := range sums.names() {
		if err := fetch(ctx, address, name, dir); err != nil {
			return err
		}
	}
	if err := fetch(ctx, address, signatureName, dir); err != nil && !errors.Is(err, errAbsent) {
		return err
	}
	return nil
}

// fetch writes one file.
func fetch(ctx context.Context, address, name, dir string) error {
	address = strings.TrimSuffix(address, "/") + "/" + name
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	if err := secure(request.URL); err != nil {
		return err
	}
	client := http.Client{
		Timeout: 10 * time.Minute,
		CheckRedirect: func(next *http.Request, before []*http.Request) error {
			if len(before) > 5 {
				return errors.New("too many redirects")
			}
			return secure(next.URL)
		},
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusNotFound:
		return fmt.Errorf("get %s: %w", address, errAbsent)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("get %s: %s", address, response.Status)
	}
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	n, err := io.Copy(file, io.LimitReader(response.Body, largest))
	if err == nil && n == largest {
		err = errors.New("it is too large")
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("get %s: %w", address, err)
	}
	return nil
}

// secure accepts https, and http only from this machine.
func secure(u *url.URL) error {
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "https" || u.Scheme == "http" && ip != nil && ip.IsLoopback() {
		return nil
	}
	return hint.Add(fmt.Errorf("%s is not https", u), "a release is downloaded by https only")
}
