package command

import "bytes"

// remembered is how many lines an error shows at most.
const remembered = 40

// lines is a writer that splits what it gets and remembers the last lines.
type lines struct {
	each  func(string)
	noise func(string) bool // what is not remembered; nil for nothing
	rest  []byte
	last  []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.rest = rest
		l.add(string(line))
	}
}

func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.add(string(l.rest))
		l.rest = nil
	}
}

func (l *lines) add(line string) {
	l.each(line)
	if l.noise != nil && l.noise(line) {
		return
	}
	l.last = append(l.last, line)
	if len(l.last) > remembered {
		l.last = l.last[1:]
	}
}
