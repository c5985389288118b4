package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
)

const (
	// firstPage and lastPage are how many names are read at once to find those that a
	// filter matches: few at first, and more where it matches few.
	firstPage, lastPage = 1024, 32768

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
	from, below := narrow(q.Filter)
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
// within the range of q, without holding them.
func (s *Store) Count(ctx context.Context, q fleet.Query) (int64, error) {
	args := bounds(q)
	if q.Filter == nil {
		return s.number(ctx, countSQL, args...)
	}
	var count int64
	page := pager{store: s, doing: "counting devices", args: args, size: lastPage}
	for !page.end {
		err := page.next(ctx, func(name []byte) {
			if q.Filter.Match(name) {
				count++
			}
		})
		if err != nil {
			return 0, err
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
		err := page.next(ctx, func(name []byte) {
			switch {
			case more || q.Filter != nil && !q.Filter.Match(name):
			case len(names) == limit:
				more = true
			default:
				names = append(names, string(name))
			}
		})
		if err != nil {
			return nil, false, err
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

// next hands the names of the next page to name, each for the time of that call.
func (p *pager) next(ctx context.Context, name func([]byte)) error {
	read, last, until := 0, fmt.Appendf(nil, "%s", p.args[2]), fmt.Sprint(p.args[4])
	err := p.store.query(ctx, p.doing, func(row pgx.CollectableRow) (err error) {
		read++
		if last, err = nextName(row, last, until, read, p.size); err != nil {
			return err
		}
		name(last)
		return nil
	}, namesSQL, append(p.args[:len(p.args):len(p.args)], p.size)...)
	p.args[2], p.end = string(last), read < p.size
	return err
}
