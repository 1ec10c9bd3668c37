package report

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
)

// The measures of the picture, in pixels, and in letters of a line.
const (
	pictureWidth = 860
	boxHeight    = 56
	gap          = 44
	lineLetters  = 104
)

// first are the steps in which the stock kubelet ends before it gets to its causes.
var first = []string{"cgroup-v1", "iteration-2-kmsg"}

// chain is what ends a stock kubelet, one after the other, and the kubelet that lives.
func chain(c Column) []Step {
	var found []Step
	for _, id := range first {
		if i := slices.IndexFunc(c.Steps, func(s Step) bool { return s.ID == id }); i >= 0 {
			found = append(found, c.Steps[i])
		}
	}
	return append(found, causes(c)...)
}

func causes(c Column) (found []Step) {
	for _, s := range c.Steps {
		if s.Kind == Cause {
			found = append(found, s)
		}
	}
	return found
}

// picture shows which error hides behind which, and what removes it: from top to bottom,
// as SVG. It has nothing in it that differs from run to run.
func picture(c Column) string {
	causes := chain(c)
	var svg strings.Builder
	height := len(causes)*(boxHeight+gap) - gap + 16
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", pictureWidth, height)
	for i, s := range causes {
		top := 8 + i*(boxHeight+gap)
		colour := "#fde8e8"
		if s.Result == Passed {
			colour = "#e6f6e6"
		}
		fmt.Fprintf(&svg, `<rect x="8" y="%d" width="%d" height="%d" rx="6" fill="%s" stroke="#888"/>`+"\n", top, pictureWidth-16, boxHeight, colour)
		fmt.Fprintf(&svg, `<text x="20" y="%d" font-weight="bold">%s</text>`+"\n", top+22, plain(s.Title))
		fmt.Fprintf(&svg, `<text x="20" y="%d" font-family="monospace">%s</text>`+"\n", top+43, plain(s.Expected))
		if i+1 < len(causes) {
			bottom := top + boxHeight
			fmt.Fprintf(&svg, `<path d="M40 %d v%d m-5 -7 l5 7 l5 -7" fill="none" stroke="#444"/>`+"\n", bottom, gap)
			fmt.Fprintf(&svg, `<text x="56" y="%d">%s</text>`+"\n", bottom+gap/2+5, plain(s.Fix))
		}
	}
	svg.WriteString("</svg>\n")
	return svg.String()
}

// plain is a line of text for XML.
func plain(text string) string {
	letters := []rune(strings.Join(strings.Fields(text), " "))
	if len(letters) > lineLetters {
		letters = append(letters[:lineLetters-1], '…')
	}
	var escaped strings.Builder
	_ = xml.EscapeText(&escaped, []byte(string(letters)))
	return escaped.String()
}
