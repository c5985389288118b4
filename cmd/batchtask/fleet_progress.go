package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
	"k8s.io/utils/clock"

	"batchtask.dev/operator/internal/fleet/transfer"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
)

const (
	// maxBadShown is how many bad lines are told one by one.
	maxBadShown = 100
	// How often progress is shown: on a terminal, and elsewhere.
	barEvery, lineEvery = 200 * time.Millisecond, 5 * time.Second
)

// progress shows how far an import is: a bar on a terminal, now and then a line
// elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	clock    clock.PassiveClock
	size     int64 // bytes of the file; 0 where nobody knows
	began    time.Time
	shown    time.Time
	bads     int
}

func newProgress(w io.Writer, c clock.PassiveClock, size int64) *progress {
	f, ok := w.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	now := c.Now()
	return &progress{w: w, terminal: terminal, clock: c, size: size, began: now, shown: now}
}

// line writes a line, above the bar where there is one.
func (p *progress) line(text string) {
	if p.terminal {
		text = "\r\x1b[K" + text
	}
	_, _ = io.WriteString(p.w, text+"\n")
}

// bad tells a line that is wrong, as long as there are not too many of them.
func (p *progress) bad(e *devicefile.LineError) {
	p.bads++
	switch {
	case p.bads <= maxBadShown:
		p.line(e.Error())
	case p.bads == maxBadShown+1:
		p.line(fmt.Sprintf("more than %d lines are bad; the others are counted and not shown", maxBadShown))
	}
}

// show shows how far the import is, unless it did so a moment ago.
func (p *progress) show(done transfer.Progress) {
	now := p.clock.Now()
	every := lineEvery
	if p.terminal {
		every = barEvery
	}
	if now.Sub(p.shown) < every {
		return
	}
	p.shown = now
	if text := p.render(done, now); p.terminal {
		_, _ = io.WriteString(p.w, "\r\x1b[K"+text)
	} else {
		p.line(text)
	}
}

func (p *progress) render(done transfer.Progress, now time.Time) string {
	text := fmt.Sprintf("%d devices, %d bad lines", done.Good(), done.Bad)
	if seconds := now.Sub(p.began).Seconds(); seconds > 0 {
		text += fmt.Sprintf(", %.0f/s", float64(done.Good())/seconds)
	}
	if p.size == 0 {
		return fmt.Sprintf("line %d: %s", done.Line, text)
	}
	share := min(float64(done.Bytes)/float64(p.size), 1)
	if !p.terminal {
		return fmt.Sprintf("%3.0f%%: %s", 100*share, text)
	}
	const width = 30
	full := int(share * width)
	return fmt.Sprintf("%s%s %3.0f%% %s", strings.Repeat("█", full), strings.Repeat("░", width-full), 100*share, text)
}

// end removes the bar, and tells how many bad lines were not shown.
func (p *progress) end(done transfer.Progress) {
	if p.terminal {
		_, _ = io.WriteString(p.w, "\r\x1b[K")
	}
	if more := done.Bad - maxBadShown; more > 0 {
		p.line(fmt.Sprintf("%d more lines are bad and were not shown", more))
	}
}
