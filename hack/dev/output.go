package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// output writes for a person. On a terminal it has colours and redraws progress
// bars; elsewhere each change of a bar is a line.
type output struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	colour   bool
}

func newOutput(w io.Writer, terminal bool) *output {
	return &output{w: w, terminal: terminal, colour: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

const (
	bold  = "1"
	dim   = "2"
	green = "32"
	red   = "31"
	cyan  = "36"
)

func (o *output) paint(code, text string) string {
	if !o.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (o *output) text(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = io.WriteString(o.w, text)
}

func (o *output) line(format string, args ...any) { o.text(fmt.Sprintf(format, args...) + "\n") }

func (o *output) heading(title string) { o.line("%s", o.paint(bold, title)) }

// good is a line about something that was checked.
func (o *output) good(format string, args ...any) {
	o.line("  %s %s", o.paint(green, "✓"), fmt.Sprintf(format, args...))
}

// bars draws progress bars one below the other.
type bars struct {
	out   *output
	drawn int      // lines on the terminal that are the bars
	last  []string // what was written last, for each bar
}

// draw shows the bars as they are now.
func (b *bars) draw(now []bar) {
	if b.last == nil {
		b.last = make([]string, len(now))
	}
	var text strings.Builder
	if b.out.terminal && b.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", b.drawn)
	}
	for i, bar := range now {
		line := bar.render(b.out)
		if b.out.terminal {
			text.WriteString("\r\x1b[K" + line + "\n")
		} else if line != b.last[i] {
			text.WriteString(line + "\n")
		}
		b.last[i] = line
	}
	b.drawn = len(now)
	b.out.text(text.String())
}

// bar is how far one task is.
type bar struct {
	name    string
	phase   string
	done    int64
	failed  int64
	matched int64
}

func (b bar) render(o *output) string {
	const width = 30
	full := 0
	if b.matched > 0 {
		full = int(min(b.done+b.failed, b.matched) * width / b.matched)
	}
	colour := cyan
	switch {
	case b.failed > 0 || b.phase == "Failed":
		colour = red
	case b.phase == "Done":
		colour = green
	}
	return fmt.Sprintf("  %-12s %s%s %4d/%-4d %s", b.name,
		o.paint(colour, strings.Repeat("█", full)), o.paint(dim, strings.Repeat("░", width-full)),
		b.done, b.matched, o.paint(colour, b.phase))
}
