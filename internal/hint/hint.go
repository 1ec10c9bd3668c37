// Package hint adds to an error what the user can do about it.
package hint

import (
	"errors"
	"fmt"
)

// hinted prints its hint on a line of its own, after the error.
type hinted struct {
	err  error
	hint string
}

// Add returns err followed by a line "hint: …". The hint says what to do, as a
// command where there is one.
func Add(err error, format string, args ...any) error {
	return &hinted{err: err, hint: fmt.Sprintf(format, args...)}
}

func (h *hinted) Error() string { return h.err.Error() + "\nhint: " + h.hint }

func (h *hinted) Unwrap() error { return h.err }

// In reports whether an error has a hint already.
func In(err error) bool {
	var h *hinted
	return errors.As(err, &h)
}
