package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// client asks the apiserver the few things that bringing a node up needs. client-go
// would add a third to the size of the launcher for them.
type client struct {
	http   *http.Client
	server string
	token  string      // what it says who it is by, where that is no certificate
	header http.Header // what else it says
}

// newClient asks as the user of a kubeconfig that has one, of one cluster.
func newClient(file string) (*client, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var config clientcmd.Config
	if err := yaml.Unmarshal(data, &config); err != nil || len(config.Clusters) == 0 || len(config.AuthInfos) == 0 {
		return nil, errors.Join(fmt.Errorf("%s is not a kubeconfig with a cluster and a user", file), err)
	}
	user, cluster := config.AuthInfos[0].AuthInfo, config.Clusters[0].Cluster
	pair, err := tls.X509KeyPair(user.ClientCertificateData, user.ClientKeyData)
	if err != nil {
		return nil, fmt.Errorf("the certificate in %s: %w", file, err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(cluster.CertificateAuthorityData) {
		return nil, fmt.Errorf("%s has no certificate authority", file)
	}
	return clientOf(cluster.Server, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: authorities, ServerName: cluster.TLSServerName}), nil
}

func clientOf(server string, config *tls.Config) *client {
	return &client{server: server, http: &http.Client{
		Timeout: 10 * time.Second,
		// Not by the proxy of the environment: it is on this machine, or on one beside it.
		Transport: &http.Transport{TLSClientConfig: config},
	}}
}

// get reads an object. With nil for into the answer only has to be 200.
func (c *client) get(ctx context.Context, path string, into any) error {
	data, err := c.do(ctx, http.MethodGet, path, nil)
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	return err
}

// ensure makes an object in a collection, unless one of its name exists: that may be
// the user's by now.
func (c *client) ensure(ctx context.Context, collection string, object metav1.Object) error {
	err := c.get(ctx, collection+"/"+url.PathEscape(object.GetName()), nil)
	if !answered(err, http.StatusNotFound) {
		return err
	}
	data, err := json.Marshal(object)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, collection, data)
	if answered(err, http.StatusConflict) {
		return nil
	}
	return err
}

// merge changes some of the fields of an object (RFC 7386).
func (c *client) merge(ctx context.Context, path string, fields any) error {
	data, err := json.Marshal(fields)
	if err == nil {
		_, err = c.request(ctx, http.MethodPatch, path, "application/merge-patch+json", data)
	}
	return err
}

// answered reports whether an error is this answer of the apiserver.
func answered(err error, code int) bool {
	var failed *statusError
	return errors.As(err, &failed) && failed.code == code
}

// watch calls changed when something in a collection changes, and each time when it
// may have missed that, until ctx ends.
func (c *client) watch(ctx context.Context, collection string, changed func()) {
	untilEnd(ctx, func() error {
		changed()
		// Without a version the answer begins with all that is there.
		return c.events(ctx, collection, "", func(string, json.RawMessage) error { changed(); return nil })
	})
}

// untilEnd does something again and again until ctx ends, a second after it has ended: the
// apiserver ends a watch now and then.
func untilEnd(ctx context.Context, again func() error) {
	for ctx.Err() == nil {
		_ = again()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watchLimit is after how long what a watch may have missed is noticed, in seconds.
const watchLimit = "300"

// events passes on those of a collection since a version of it, each with its type and the
// object, until ctx ends or there is an error. The apiserver ends it after watchLimit.
func (c *client) events(ctx context.Context, collection, version string, event func(kind string, object json.RawMessage) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server+collection, nil)
	if err != nil {
		return err
	}
	query := request.URL.Query()
	query.Set("watch", "true")
	query.Set("timeoutSeconds", watchLimit)
	if version != "" {
		query.Set("resourceVersion", version)
	}
	request.URL.RawQuery = query.Encode()
	patient := &http.Client{Transport: c.http.Transport} // without a limit of time
	response, err := patient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return &statusError{http.MethodGet, collection, response.StatusCode, ""}
	}
	decoder := json.NewDecoder(response.Body)
	for {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := decoder.Decode(&e); err != nil {
			return err
		}
		if err := event(e.Type, e.Object); err != nil {
			return err
		}
	}
}

// statusError is an answer that is not a success.
type statusError struct {
	method, path string
	code         int
	answer       string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the apiserver answers %s %s with %d: %s", e.method, e.path, e.code, e.answer)
}

func (c *client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return c.request(ctx, method, path, "application/json", body)
}

// request asks for JSON. The error of an answer that is not a success is a statusError.
func (c *client) request(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, c.header)
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", "application/json")
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= 300 {
		return nil, &statusError{method, path, response.StatusCode, messageOf(data)}
	}
	return data, nil
}

// messageOf is the text of an answer that is not a success: of a Status, where it is one.
func messageOf(answer []byte) string {
	var status metav1.Status
	if err := json.Unmarshal(answer, &status); err == nil && status.Message != "" {
		return status.Message
	}
	return strings.TrimSpace(string(answer[:min(len(answer), 400)]))
}

// dials reports whether somebody listens.
func dials(network, address string) error {
	conn, err := net.DialTimeout(network, address, time.Second)
	if err == nil {
		conn.Close()
	}
	return err
}
