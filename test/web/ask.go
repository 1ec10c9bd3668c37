package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// askers are the clients that ask at once, each on a connection that it keeps.
const askers = 4

// ask asks again and again, for some seconds, and returns how often it was answered, in
// how many seconds, and within how many milliseconds 99 of 100 times. An answer that does
// not come ends the program.
func ask(url, seconds string) string {
	within, err := time.ParseDuration(seconds + "s")
	if err != nil {
		log.Fatal(err)
	}
	var all []time.Duration
	var total time.Duration
	var mu sync.Mutex
	var running sync.WaitGroup
	begun := time.Now()
	for range askers {
		running.Go(func() {
			once, unasked := client(url)
			var took []time.Duration
			for time.Since(begun) < within {
				start := time.Now()
				if err := once(); err != nil {
					log.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			all, total = append(all, took...), max(total, time.Since(begun))
			mu.Unlock()
			if unasked() {
				log.Fatal("more came than the answers")
			}
		})
	}
	running.Wait()
	slices.Sort(all)
	return fmt.Sprintf("%d %.3f %.3f", len(all), total.Seconds(), float64(all[len(all)*99/100])/float64(time.Millisecond))
}

// client returns what asks once, and what reports, in the end, whether something else came
// than an answer to each question: one that came twice would be taken for the next one's.
func client(url string) (once func() error, unasked func() bool) {
	if address, ok := strings.CutPrefix(url, "udp://"); ok {
		conn, err := net.Dial("udp", address)
		if err != nil {
			log.Fatal(err)
		}
		answer := make([]byte, 2048)
		once = func() error {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := conn.Write([]byte("who"))
			if err == nil {
				_, err = conn.Read(answer)
			}
			return err
		}
		return once, func() bool {
			_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
			_, err := conn.Read(answer)
			return err == nil
		}
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	once = func() error {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	return once, func() bool { return false }
}

// hold opens connections and keeps them until it is killed.
func hold(address, connections string) {
	n, err := strconv.Atoi(connections)
	if err != nil {
		log.Fatal(err)
	}
	var all []net.Conn
	for range n {
		conn, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			log.Fatal(err)
		}
		all = append(all, conn)
	}
	fmt.Println(len(all))
	select {}
}
