package bench

import (
	"fmt"
	"slices"
)

// measurement is a figure with its limit.
type measurement struct {
	name  string
	value float64
	unit  string // "×" for ratios
	limit float64
	least bool   // the limit is the least that is wanted, not the most
	parts string // what the ratio is of
}

func (m measurement) missed() bool {
	if m.least {
		return m.value < m.limit
	}
	return m.value > m.limit
}

func (m measurement) String() string {
	limit, verdict := "limit", "ok"
	if m.least {
		limit = "at least"
	}
	switch {
	case m.missed() && m.least:
		verdict = "BELOW THE LIMIT"
	case m.missed():
		verdict = "OVER THE LIMIT"
	}
	return fmt.Sprintf("%-58s %8.2f %-4s (%s %.2f) %s  %s", m.name, m.value, m.unit, limit, m.limit, verdict, m.parts)
}

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}
