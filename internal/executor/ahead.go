package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/validation"
)

// Reading from the fleet store and writing to it take their time, in which the broker
// would have nothing to do. So a goroutine of its own, readAhead, is a page ahead of the
// devices that are served, and for an UpdateShadow task has their shadows updated:
//
//	readAhead: scan ─▶ update shadows ─▶ page
//	feed:                                page ─▶ account ─▶ publish
//
// Devices of pages are in no count and no message was sent to them; what bounds resends
// is the tracker alone. A crash leaves shadows updated whose devices were not told: the
// resumed task finds its own UID in them, leaves them as they are and sends the delta.
const (
	// namesPage is how many names are read at once where there is nothing to update.
	namesPage = 1024
	// Pages of shadows begin small and become as large as the store takes pagePace for:
	// one call for many is cheaper for a database, and a store that is slow must not hold
	// messages up.
	leastPage, largestPage = 64, 4096
	pagePace               = 50 * time.Millisecond
	// pageBytes is how large the deltas of a page may be together, about: two pages are
	// held. What all runs hold is bounded by the pageBudget.
	pageBytes = 4 << 20
)

// page is a number of devices that follow each other.
type page struct {
	names   []string
	updates []fleet.DesiredResult // of the same devices; nil for a PublishMessage task
	last    bool                  // no devices come after these
	paid    int                   // what it has of the budget
}

// bytes is how much memory the page takes, about.
func (p *page) bytes() int {
	n := len(p.names) * nameBytes
	for _, u := range p.updates {
		n += cap(u.Delta)
	}
	return n
}

// take removes the first n devices and returns them.
func (p *page) take(n int) (names []string, updates []fleet.DesiredResult) {
	names, p.names = p.names[:n], p.names[n:]
	if p.updates != nil {
		updates, p.updates = p.updates[:n], p.updates[n:]
	}
	return names, updates
}

// readAhead sends all pages after a name, until feeding ends.
func (r *run) readAhead(after string, pages chan<- page) {
	size, most := namesPage, nameBytes
	if r.task.Publish == nil {
		size, most = leastPage, nameBytes+largestDelta
	}
	for {
		var p page
		limit, paid := r.paging.reserve(size, most)
		if !r.persist("reading the devices", func(ctx context.Context) error {
			names, more, err := r.exec.store.Scan(ctx, r.query(after), limit)
			p.names, p.last = names, !more
			if err == nil {
				err = checkNames(names, after, more)
			}
			return err
		}) {
			return
		}
		if r.task.Publish == nil && len(p.names) > 0 {
			var took time.Duration
			var ok bool
			if !r.mayFeed() {
				return
			}
			if p.updates, took, ok = r.updatePage(p.names); !ok {
				return
			}
			size = nextSize(limit, p, took)
		}
		p.paid = p.bytes()
		r.paging.adjust(p.paid - paid)
		select {
		case pages <- p:
		case <-r.feeding.Done():
			return
		}
		if p.last {
			return
		}
		after = p.names[len(p.names)-1]
	}
}

// checkNames returns an error where what a store has read cannot be. The order of names is
// what counts rest on, and a page without any would be asked for for ever.
func checkNames(names []string, after string, more bool) error {
	if more && len(names) == 0 {
		return errors.New("the store has read no devices, and says that there are more")
	}
	for _, name := range names {
		if name <= after || !validation.DeviceName(name) {
			return fmt.Errorf("the store has read %q after %q", clip(name, maxReason), clip(after, maxReason))
		}
		after = name
	}
	return nil
}

// updatePage updates the shadows of these devices, again and again while the store can
// update none. What it could not update of others is for feed to try again. It returns
// how long the last time took, or false when feeding has ended.
func (r *run) updatePage(names []string) (updates []fleet.DesiredResult, took time.Duration, ok bool) {
	ok = r.persist("updating shadows", func(ctx context.Context) error {
		started := r.exec.opts.Clock.Now()
		updates = r.exec.store.ApplyDesired(ctx, r.task.Product, r.update(started), names)
		took = r.exec.opts.Clock.Since(started)
		for _, u := range updates {
			if verdict, _, _ := judge(u.Err); verdict != pending {
				return nil
			}
		}
		return updates[0].Err
	})
	return updates, took, ok
}

func (r *run) update(now time.Time) fleet.DesiredUpdate {
	return fleet.DesiredUpdate{TaskUID: string(r.task.UID), Patch: r.task.Desired, Now: now}
}

// nextSize is how large a page shall be after p, where size was asked for, whose update
// took so long.
func nextSize(size int, p page, took time.Duration) int {
	bytes := 0
	for _, u := range p.updates {
		bytes += len(u.Delta)
	}
	fits := largestPage
	if took > 0 {
		fits = min(fits, int(int64(len(p.names))*int64(pagePace)/int64(took)))
	}
	if bytes > 0 {
		fits = min(fits, len(p.names)*pageBytes/bytes)
	}
	return min(max(fits, size/2, leastPage), 2*size)
}
