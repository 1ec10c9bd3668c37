package workdir

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"k3s9p/internal/progress"
)

// Lock lets one build run at a time in a work tree. It waits, and says for whom,
// and removes what a killed holder left. The kernel gives the lock back when its
// holder ends, however it ends.
func (t Tree) Lock(ctx context.Context, ui *progress.Printer) (unlock func(), err error) {
	if err := os.MkdirAll(t.Work(), 0o755); err != nil {
		return nil, err
	}
	name := t.Work("lock")
	lock := flock.New(name)
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if !locked {
		step := ui.Step("waiting for %s", holder(name))
		if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
			step.Fail()
			return nil, fmt.Errorf("wait for %s: %w", holder(name), err)
		}
		step.Done("")
	}
	text := fmt.Sprintf("%s, process %d, since %s", strings.Join(os.Args, " "), os.Getpid(), time.Now().Format(time.TimeOnly))
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		lock.Unlock()
		return nil, err
	}
	if err := t.sweep(); err != nil {
		lock.Unlock()
		return nil, err
	}
	return func() { lock.Unlock() }, nil
}

// holder says who holds the lock, as its holder wrote it.
func holder(name string) string {
	text, err := os.ReadFile(name)
	if err != nil || len(text) == 0 {
		return "another build"
	}
	return "another build: " + string(text)
}
