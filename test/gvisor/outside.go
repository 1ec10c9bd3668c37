package gvisor

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
)

// ServeOutside serves N MiB at http://OutsideAddress:8080/bytes?mib=N and counts what
// is sent to /receive, until the test ends. Outside calls a function in the network
// namespace on the other end of eth0.
func ServeOutside(t *testing.T, outside func(func() error) error) {
	t.Helper()
	var listener net.Listener
	err := outside(func() (err error) {
		listener, err = net.Listen("tcp", OutsideAddress+":8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := http.NewServeMux()
	handler.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		mib, _ := strconv.Atoi(r.FormValue("mib"))
		block := make([]byte, 1<<20)
		for range mib {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	handler.HandleFunc("/receive", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
}
