package postgres

import (
	"context"
	"crypto/sha256"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Mostly all devices of a product have the same shadow but for its version, and a task
// is for all devices between two names. Then one statement that goes through the range
// updates them, and returns the versions: half the work of reading the rows and writing
// each in its place. It leaves out the rows that are not alike.
//
// It writes nothing unless the enabled devices of the range are exactly those that are
// to be updated. That is looked at in the same snapshot, so a device that comes or goes
// meanwhile is no danger, and the range cannot turn out to be longer than the list.
const applyAlikeSQL = `UPDATE batchtask_device AS d SET version = d.version + 1, changed_ms = $4, acknowledged = $5,
		desired = $6, metadata = $7, applied_tasks = ` + appliedTasks + `
	WHERE (SELECT sha256(convert_to(string_agg(device_name, ','), 'UTF8')) FROM (SELECT r.device_name FROM batchtask_device r
			WHERE r.namespace = $1 AND r.product_id = $2 AND r.device_name >= $8 AND r.device_name <= $9 AND NOT r.disabled
			ORDER BY r.device_name LIMIT $10) AS n) = $11
		AND d.namespace = $1 AND d.product_id = $2 AND d.device_name >= $8 AND d.device_name <= $9 AND NOT d.disabled
		AND d.reported = $12 AND d.desired = $13 AND d.metadata = $14 AND cardinality(d.applied_tasks) = $15 AND d.acknowledged = $16
		AND NOT $3 = ANY (d.applied_tasks) AND d.version < 9223372036854775807
	RETURNING d.device_name, d.version`

// leastAlike is how many devices it takes to be worth the try.
const leastAlike = 16

// likeness is what most devices had when an update read them last.
type likeness struct {
	documents
	// tasks is how many tasks the shadows remember, and acknowledged how many of these
	// the devices have acknowledged.
	tasks, acknowledged int
	// common: more than half of the devices had all this.
	common bool
}

// applyAlike updates those of the devices, which are in the order of their names, that
// are like most others, and returns the rest.
func (a *application) applyAlike(ctx context.Context, devices []*device) (rest []*device, err error) {
	expected := a.store.expected.Load()
	if !expected.common || len(devices) < leastAlike {
		return devices, nil
	}
	in := input{documents: expected.documents, tasks: expected.tasks, acknowledged: expected.acknowledged}
	out := a.memo.outcome(in)
	if !out.shared || !out.write || out.acknowledged > out.known { // what is acknowledged is counted elsewhere
		return devices, nil
	}
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.name
	}
	digest := sha256.Sum256([]byte(strings.Join(names, ",")))
	rows, err := a.store.pool.Query(ctx, applyAlikeSQL, a.product.Namespace, a.product.ProductID, a.update.TaskUID, a.update.Now.UnixMilli(),
		out.acknowledged, out.desired, out.metadata, names[0], names[len(names)-1], len(names)+1, digest[:],
		in.reported, in.desired, in.metadata, in.tasks, in.acknowledged)
	if err != nil {
		return nil, err
	}
	updated := newRoll(devices)
	err = each(rows, func(r pgx.CollectableRow) error {
		row := fieldsOf(r, 2)
		name, version := row.text(0), row.int64(1)
		if row.err != nil {
			return row.err
		}
		d, err := updated.find(name)
		switch {
		case err != nil:
			return err
		case d == nil:
			// It was given that name by a trigger, or by somebody else at this moment. The
			// shadows are written and remember the task, so the next attempt finds all of them.
			return contradicts("it has updated device %s, which the task has not named", shown(name))
		case version < 1:
			return contradicts("device %s has version %d after an update", shown(name), version)
		}
		in.version = version - 1
		a.memo.apply(d, in)
		return nil
	})
	rest = updated.left()
	if err == nil && len(rest) > len(names)/2 {
		a.store.expected.CompareAndSwap(expected, &likeness{documents: expected.documents})
	}
	return rest, err
}

// tally finds out what most of the rows of a statement have.
type tally struct {
	expected               likeness
	asExpected, alike, all int
	last, other            input // the last row, and the last whose documents are not as expected
}

func (t *tally) add(in input, asExpected bool) {
	t.all++
	t.last = in
	if !asExpected {
		t.other = in
		return
	}
	t.asExpected++
	if in.tasks == t.expected.tasks && in.acknowledged == t.expected.acknowledged {
		t.alike++
	}
}

// expect tells the store what to expect next.
func (t *tally) expect(s *Store) {
	next := t.expected
	switch {
	case t.all == 0:
		return
	case t.asExpected < t.all-t.asExpected:
		if t.other.size() > mostExpected {
			return
		}
		next = likeness{documents: t.other.documents, tasks: t.other.tasks, acknowledged: t.other.acknowledged}
	case t.alike <= t.all/2:
		next.tasks, next.acknowledged, next.common = t.last.tasks, t.last.acknowledged, false
	default:
		next.common = true
	}
	if next != t.expected {
		s.expected.Store(&next)
	}
}
