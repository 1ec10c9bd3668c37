package gvisor

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ServeOutside serves N MiB at http://OutsideAddress:8080/bytes?mib=N and counts what
// is sent to /receive, and answers datagrams with what they say, until the test ends.
// Outside calls a function in the network namespace on the other end of eth0.
func ServeOutside(t *testing.T, outside func(func() error) error) {
	t.Helper()
	var listener net.Listener
	var datagrams net.PacketConn
	err := outside(func() (err error) {
		if listener, err = net.Listen("tcp", OutsideAddress+":8080"); err == nil {
			datagrams, err = net.ListenPacket("udp", OutsideAddress+":8080")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		data := make([]byte, 64<<10)
		for {
			n, from, err := datagrams.ReadFrom(data)
			if err != nil {
				return
			}
			_, _ = datagrams.WriteTo(data[:n], from)
		}
	}()
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
	t.Cleanup(func() {
		server.Close()
		datagrams.Close()
	})
}

// Get asks a web server from the thread that it is called on, as Outside and Within do it:
// no connection is kept, and the address is no name, so that no other thread dials.
func Get(url string) (string, error) {
	address := strings.Split(url, "/")[2]
	conn, err := net.DialTimeout("tcp4", address, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return string(data), err
}
