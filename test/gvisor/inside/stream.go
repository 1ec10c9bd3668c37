package main

import (
	"context"
	"net/http"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// stream connects this program's input and outputs with those of a container, as
// kubectl exec and kubectl attach do.
func stream(address string) error {
	to, err := url.Parse(address)
	if err != nil {
		return err
	}
	// The kubelet's certificate is its own.
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	executor, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, to)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}
