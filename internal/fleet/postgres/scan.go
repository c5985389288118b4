package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/namefilter"
)

const (
	// firstPage and lastPage are how many names are read at once to find those that a
	// filter matches: few at first, and more where it matches few. A page is held while it
	// is matched, which may have to wait: it has 400 KB at the most.
	firstPage, lastPage = 1024, 8192

	// aboveNames is greater than all names of devices.
	aboveNames = "\x7f"

	// within selects the enabled devices of the parameters that bounds returns.
	within = ` FROM batchtask_device WHERE namespace = $1 AND product_id = $2
		AND device_name > $3 AND device_name >= $4 AND device_name <= $5 AND device_name < $6
		AND NOT disabled`
	countSQL = `SELECT count(*)` + within
	namesSQL = `SELECT device_name` + within + ` ORDER BY device_name LIMIT $7`
	totalSQL = `SELECT count(*) FROM batchtask_device WHERE namespace = $1 AND product_id = $2`
)

// bounds returns the parameters of within: an exclusive and an inclusive lower bound,
// an inclusive and an exclusive upper one.
func bounds(q fleet.Query) []any {
	until := q.Until
	if until == "" {
		until = aboveNames
	}
	from, below := q.Filter.Range()
	return []any{q.Product.Namespace, q.Product.ProductID, q.After, from, until, below}
}

// Total implements [fleet.Store].
func (s *Store) Total(ctx context.Context, p fleet.Product) (int64, error) {
	return s.number(ctx, totalSQL, p.Namespace, p.ProductID)
}

func (s *Store) number(ctx context.Context, sql string, args ...any) (n int64, err error) {
	err = s.query(ctx, "counting devices", func(row pgx.CollectableRow) error {
		if err := row.Scan(&n); err != nil {
			return err
		}
		return number("the number of devices", n, mostDevices)
	}, sql, args...)
	return n, err
}

// Count implements [fleet.Store]. With a filter it reads the names of all devices
// within the range of q, in pages.
func (s *Store) Count(ctx context.Context, q fleet.Query) (int64, error) {
	args := bounds(q)
	if q.Filter == nil {
		return s.number(ctx, countSQL, args...)
	}
	var count int64
	page := pager{store: s, doing: "counting devices", args: args, size: lastPage}
	for !page.end {
		names, err := page.next(ctx)
		if err != nil {
			return 0, err
		}
		if err := namefilter.Each(ctx, q.Product.Namespace, q.Filter, names, func(string) bool {
			count++
			return true
		}); err != nil {
			return 0, fmt.Errorf("counting devices: %w", err)
		}
	}
	return count, nil
}

// Scan implements [fleet.Store]. With a filter it reads as many names as it takes to
// find those that match, in pages.
func (s *Store) Scan(ctx context.Context, q fleet.Query, limit int) (names []string, more bool, err error) {
	if limit < 1 {
		return nil, false, fmt.Errorf("scanning devices: the limit is %d, not 1 or more", limit)
	}
	page := pager{store: s, doing: "scanning devices", args: bounds(q), size: limit + 1}
	if q.Filter != nil {
		page.size = max(page.size, firstPage)
	}
	for !page.end && !more {
		read, err := page.next(ctx)
		if err != nil {
			return nil, false, err
		}
		if err := namefilter.Each(ctx, q.Product.Namespace, q.Filter, read, func(name string) bool {
			if len(names) == limit {
				more = true
				return false
			}
			names = append(names, strings.Clone(name)) // the page goes
			return true
		}); err != nil {
			return nil, false, fmt.Errorf("scanning devices: %w", err)
		}
		page.size = min(4*page.size, max(lastPage, limit+1))
	}
	return names, more, nil
}

// pager reads names page by page.
type pager struct {
	store *Store
	doing string
	args  []any // of within; the lower bound moves up
	size  int   // of the next page
	end   bool  // there are no more names
}

// next returns the names of the next page. They are matched when the server has
// answered: how long that takes is none of its time, and holds no connection.
func (p *pager) next(ctx context.Context) ([]string, error) {
	var text strings.Builder
	ends := make([]int, 0, min(p.size, firstPage))
	last, until := fmt.Appendf(nil, "%s", p.args[2]), fmt.Sprint(p.args[4])
	err := p.store.query(ctx, p.doing, func(row pgx.CollectableRow) (err error) {
		if last, err = nextName(row, last, until, len(ends)+1, p.size); err != nil {
			return err
		}
		text.Write(last)
		ends = append(ends, text.Len())
		return nil
	}, namesSQL, append(p.args[:len(p.args):len(p.args)], p.size)...)
	if err != nil {
		return nil, err
	}
	names, all, from := make([]string, len(ends)), text.String(), 0
	for i, end := range ends {
		names[i], from = all[from:end], end
	}
	p.args[2], p.end = string(last), len(names) < p.size
	return names, nil
}
