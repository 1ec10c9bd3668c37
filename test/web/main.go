// Command web is what the pods of the scenarios run: a web server that does what a
// test tells it.
//
//	web serve ADDRESS     (default :8080)
//	web say TEXT          prints it: something to exec
//	web echo              prints what it reads: a stream to exec or attach to
//	web once              ends with success: a Job
//	web again URL         waits until it answers no more, and then does so again, and
//	                      prints when, in milliseconds since 1970
//	web download URL      prints bytes and seconds of a download
//	web upload URL MIB    the same of an upload
//
// It answers each datagram with its host name, and to
//
//	/           its host name
//	/get?url=U  what U answers: a request from inside of the pod
//	/break      from now on /healthz fails
//	/healthz    ok
//	/hold?mib=N holds N MiB of memory from now on
//	/burn?s=N   keeps one processor busy until it has used N seconds of it, then answers
//	/file?path=P      what is in a file
//	/write?path=P&text=T   puts it there
//	/lookup?name=N    the addresses of a name
//	/srv?name=N       the ports and targets of an SRV record
//	/env?name=N       a variable of its environment
//	/used             the seconds of processor time that it has used
//	/load?url=U&s=N   what U answers for N seconds, again and again: see load
//	/enough?s=N       ends that in N seconds at the latest
//	/datagram?to=A&text=T   what a UDP server answers to one datagram, a line for each answer
//	/bytes?mib=N      N MiB
//	/receive          how many bytes were sent to it
//	/download?url=U   bytes and seconds of a download, by the pod
//	/upload?url=U&mib=N   the same of an upload
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "say":
		fmt.Println(args[1])
	case len(args) == 1 && args[0] == "echo":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			log.Fatal(err)
		}
	case len(args) == 1 && args[0] == "once":
		fmt.Println("done")
	case len(args) == 2 && args[0] == "again":
		fmt.Println(again(args[1]).UnixMilli())
	case len(args) == 2 && args[0] == "download":
		show(func() (int64, error) { return download(args[1]) })
	case len(args) == 3 && args[0] == "upload":
		mib, err := strconv.Atoi(args[2])
		if err != nil {
			log.Fatal(err)
		}
		show(func() (int64, error) { return upload(args[1], mib) })
	case len(args) == 3 && args[0] == "ask":
		fmt.Println(ask(args[1], args[2]))
	case len(args) == 3 && args[0] == "hold":
		hold(args[1], args[2])
	case len(args) == 2 && args[0] == "serve":
		serve(args[1])
	case len(args) == 0:
		serve(":8080")
	default:
		log.Fatal("usage: web [serve ADDRESS | say TEXT | echo | once | again URL | download URL | upload URL MIB | ask http://… or udp://HOST:PORT SECONDS | hold HOST:PORT CONNECTIONS]")
	}
}

// again waits until a URL answers no more, and then until it says ok.
func again(url string) time.Time {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ended := false
	for ; ; time.Sleep(5 * time.Millisecond) {
		response, err := client.Get(url)
		if err != nil {
			ended = true
			continue
		}
		response.Body.Close()
		if ended && response.StatusCode == http.StatusOK {
			return time.Now()
		}
	}
}

var (
	broken atomic.Bool
	held   [][]byte
)

func serve(address string) {
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		log.Printf("answered %s %s", r.UserAgent(), r.URL.RawQuery)
		fmt.Fprint(w, host)
	})
	http.HandleFunc("/get", get)
	http.HandleFunc("/break", func(w http.ResponseWriter, _ *http.Request) { broken.Store(true) })
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			http.Error(w, "broken", http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/hold", number("mib", func(mib int) {
		block := make([]byte, mib<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
	}))
	http.HandleFunc("/burn", number("s", func(seconds int) {
		begun, err := used()
		for now := begun; err == nil && now-begun < time.Duration(seconds)*time.Second; now, err = used() {
			for pause := time.Now().Add(10 * time.Millisecond); time.Now().Before(pause); {
			}
		}
		if err != nil {
			log.Print(err)
		}
	}))
	http.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, r.FormValue("path")) })
	http.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		if err := os.WriteFile(r.FormValue("path"), []byte(r.FormValue("text")), 0o644); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		addresses, err := net.DefaultResolver.LookupHost(r.Context(), r.FormValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, strings.Join(addresses, " "))
	})
	http.HandleFunc("/srv", func(w http.ResponseWriter, r *http.Request) {
		_, records, err := net.DefaultResolver.LookupSRV(r.Context(), "", "", r.FormValue("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		for _, record := range records {
			fmt.Fprintf(w, "%d %s\n", record.Port, record.Target)
		}
	})
	http.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getenv(r.FormValue("name"))) })
	http.HandleFunc("/used", func(w http.ResponseWriter, _ *http.Request) {
		processor, err := used()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, "%.3f", processor.Seconds())
	})
	http.HandleFunc("/load", load)
	http.HandleFunc("/enough", number("s", func(seconds int) { enough.Store(time.Now().Add(time.Duration(seconds) * time.Second).UnixNano()) }))
	http.HandleFunc("/datagram", datagram)
	http.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		mib, _ := strconv.Atoi(r.FormValue("mib"))
		_, _ = io.Copy(w, zeros(mib))
	})
	http.HandleFunc("/receive", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			log.Print(err)
		}
		fmt.Fprint(w, n)
	})
	http.HandleFunc("/download", measured(func(r *http.Request) (int64, error) { return download(r.FormValue("url")) }))
	http.HandleFunc("/upload", measured(func(r *http.Request) (int64, error) {
		mib, _ := strconv.Atoi(r.FormValue("mib"))
		return upload(r.FormValue("url"), mib)
	}))
	datagrams, err := net.ListenPacket("udp", address)
	if err != nil {
		log.Fatal(err)
	}
	go answerDatagrams(datagrams, host)
	log.Printf("serving on %s", address)
	log.Fatal(http.ListenAndServe(address, nil))
}

// used is the processor time that this process has used.
func used() (time.Duration, error) {
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), err
}

func get(w http.ResponseWriter, r *http.Request) {
	// Each request is a connection of its own, as another client's. Of a name it takes 5 s
	// until the resolver asks again, if a datagram was lost.
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(r.FormValue("url"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, response.Body); err != nil {
		log.Print(err)
	}
}

// enough is when a load is to end, in nanoseconds since 1970.
var enough atomic.Int64

// load asks four times at once, each on a connection of its own. It answers with a line
// that says that each has had an answer, and at the end with one for each answer that there
// was: how often, when for the last time (seconds since 1970), and the answer, or the error.
func load(w http.ResponseWriter, r *http.Request) {
	seconds, err := strconv.Atoi(r.FormValue("s"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	type times struct {
		n    int
		last time.Time
	}
	var mu sync.Mutex
	answers := make(map[string]times)
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	enough.Store(time.Now().Add(time.Duration(seconds) * time.Second).UnixNano())
	var clients, begun sync.WaitGroup
	begun.Add(4)
	for range 4 {
		clients.Go(func() {
			begin := sync.OnceFunc(begun.Done)
			defer begin()
			for time.Now().UnixNano() < enough.Load() {
				answer := answerOf(client, r.FormValue("url"))
				mu.Lock()
				answers[answer] = times{answers[answer].n + 1, time.Now()}
				mu.Unlock()
				begin()
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	begun.Wait()
	fmt.Fprintln(w, "begun")
	_ = http.NewResponseController(w).Flush() // who has asked may be gone
	clients.Wait()
	for answer, t := range answers {
		fmt.Fprintf(w, "%d %.3f %s\n", t.n, float64(t.last.UnixMilli())/1000, answer)
	}
}

// answerOf is what a server answers, or the error, in a line.
func answerOf(client http.Client, url string) string {
	response, err := client.Get(url)
	if err != nil {
		return "error: " + err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Sprint("error: ", response.Status, " ", err)
	}
	return strings.ReplaceAll(string(body), "\n", " ")
}

func answerDatagrams(conn net.PacketConn, answer string) {
	question := make([]byte, 2048)
	for {
		_, from, err := conn.ReadFrom(question)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := conn.WriteTo([]byte(answer), from); err != nil {
			log.Print(err)
		}
	}
}

func datagram(w http.ResponseWriter, r *http.Request) {
	conn, err := net.Dial("udp", r.FormValue("to"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	answer := make([]byte, 64<<10)
	_, err = conn.Write([]byte(r.FormValue("text")))
	n := 0
	if err == nil {
		n, err = conn.Read(answer)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	_, _ = w.Write(answer[:n])
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	for n, err := conn.Read(answer); err == nil; n, err = conn.Read(answer) {
		_, _ = fmt.Fprintf(w, "\n%s", answer[:n])
	}
}

// zeros reads as so many MiB.
func zeros(mib int) io.Reader { return io.LimitReader(zero{}, int64(mib)<<20) }

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// download returns how many bytes came.
func download(url string) (int64, error) {
	response, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return io.Copy(io.Discard, response.Body)
}

// upload returns how many bytes the server has counted.
func upload(url string, mib int) (int64, error) {
	response, err := http.Post(url, "application/octet-stream", zeros(mib))
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var n int64
	_, err = fmt.Fscan(response.Body, &n)
	return n, err
}

// timed is the bytes that f moved and the seconds that it took, as text.
func timed(f func() (int64, error)) (string, error) {
	start := time.Now()
	n, err := f()
	return fmt.Sprintf("%d %.3f", n, time.Since(start).Seconds()), err
}

// show prints that.
func show(f func() (int64, error)) {
	text, err := timed(f)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(text)
}

// measured answers with that.
func measured(f func(*http.Request) (int64, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, err := timed(func() (int64, error) { return f(r) })
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, text)
	}
}

// number hands a form value to f.
func number(name string, f func(int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue(name))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f(n)
	}
}
