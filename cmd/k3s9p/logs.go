package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"k3s9p/internal/node"
)

// logNames are the programs that have a log.
func logNames(cmd *cobra.Command) []string {
	files, _ := filepath.Glob(filepath.Join(node.Paths{Data: dataDir(cmd)}.Logs(), "*.log"))
	var names []string
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".log")
		if !rotated(name) {
			names = append(names, name)
		}
	}
	return names
}

// rotated recognises what a rotation made of a log: its name has a date.
func rotated(name string) bool { return strings.Contains(name, "T") }

// showLog prints the last lines of a file and, if asked to, what is written to it
// from then on. It looks twice a second: 9p reports no changes (inotify(7)).
func showLog(ctx context.Context, w io.Writer, name string, lines int, follow bool) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	if err := printTail(w, file, lines); err != nil || !follow {
		return err
	}
	for {
		if _, err := io.Copy(w, file); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
		here, err := file.Stat()
		if err != nil {
			return err
		}
		if there, err := os.Stat(name); err == nil && !os.SameFile(here, there) { // it was rotated
			next, err := os.Open(name)
			if err != nil {
				return err
			}
			if _, err := io.Copy(w, file); err != nil {
				return errors.Join(err, next.Close())
			}
			file.Close()
			file = next
		}
	}
}

func printTail(w io.Writer, file *os.File, lines int) error {
	if lines < 0 {
		_, err := io.Copy(w, file)
		return err
	}
	last := make([]string, 0, lines)
	reader := bufio.NewReader(file)
	for {
		line, err := reader.ReadString('\n')
		if line != "" && lines > 0 {
			if len(last) == lines {
				last = append(last[:0], last[1:]...)
			}
			last = append(last, line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, strings.Join(last, ""))
	return err
}
