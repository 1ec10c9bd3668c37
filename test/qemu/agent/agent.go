// Package agent runs programs in a virtual machine for a test outside of it: a request
// and an answer at a time, as lines of JSON over a serial port.
package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// Port is the name of the virtio serial port.
const Port = "k3s9p.agent"

// Request asks for a program, or for nothing but an answer if Args is empty.
type Request struct {
	Args   []string      `json:"args"`
	Stdin  string        `json:"stdin,omitempty"`
	Within time.Duration `json:"within"` // after that it is killed
}

// Answer says how it ended.
type Answer struct {
	Output string `json:"output"` // on both outputs
	Error  string `json:"error,omitempty"`
}

// Serve answers requests until the port has no more.
func Serve(port io.ReadWriter, env []string) error {
	requests, answers := json.NewDecoder(port), json.NewEncoder(port)
	for {
		var r Request
		if err := requests.Decode(&r); err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		if err := answers.Encode(r.run(env)); err != nil {
			return fmt.Errorf("answer a request: %w", err)
		}
	}
}

func (r Request) run(env []string) (a Answer) {
	if len(r.Args) == 0 {
		return a
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.Within)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Args[0], r.Args[1:]...)
	var output bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewBufferString(r.Stdin), &output, &output
	cmd.WaitDelay = time.Second // what it left in the background may hold the outputs
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end within %v", r.Within)
	}
	if a.Output = output.String(); err != nil {
		a.Error = err.Error()
	}
	return a
}
