package postgres

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/fleettest"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/shadow"
)

// likeSeed makes the store expect what seed makes.
func (h *harness) likeSeed() {
	s := seeded(0, 90).Shadow
	h.store.expected.Store(&likeness{documents: documents{s.Reported, s.Desired, s.Metadata}, tasks: 2, common: true})
}

// trigger makes a trigger on the devices.
func (h *harness) trigger(t *testing.T, name, when, body string) {
	t.Helper()
	h.all(t, fmt.Sprintf(`CREATE FUNCTION %[1]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN %[2]s END $$`, name, body))
	h.all(t, fmt.Sprintf(`CREATE TRIGGER %[1]s %[2]s ON batchtask_device FOR EACH ROW EXECUTE FUNCTION %[1]s()`, name, when))
}

// TestTriggerRenames : a trigger gives a device another name while its shadow is updated.
// That ends the call with an error; the next one finds who is there.
func TestTriggerRenames(t *testing.T) {
	server := pgtest.Start(t)
	for name, to := range map[string]string{
		"a name after all": "zzz", "a name before all": "aaa", "a name between": "device-0000041-b", "a legal name of another product's": "other",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, server)
			p := h.Product(t)
			names := h.seed(t, p, 100)
			h.trigger(t, "rename", "BEFORE UPDATE", `IF NEW.device_name = 'device-0000041' THEN NEW.device_name := '`+to+`'; END IF; RETURN NEW;`)
			h.likeSeed()
			u := update(t, "task", `{"state":"open"}`)
			for i, r := range h.store.ApplyDesired(t.Context(), p, u, names) {
				if _, is := errors.AsType[*contradictionError](r.Err); !is || refused(r.Err) || !strings.Contains(r.Err.Error(), to) {
					t.Fatalf("%s: delta %s, error %v; want an error that names %s", names[i], r.Delta, r.Err, to)
				}
			}
			for i, r := range h.store.ApplyDesired(t.Context(), p, u, names) {
				if gone := errors.Is(r.Err, fleet.ErrDeviceGone); gone != (i == 41) || !gone && (r.Err != nil || r.Delta == nil) {
					t.Errorf("%s, again: delta %s, error %v", names[i], r.Delta, r.Err)
				}
			}
			names = append(names[:41], names[42:]...)
			for _, name := range names {
				if s := h.Shadow(t, p, name); s.Desired != `{"state":"open"}` || len(s.AppliedTasks) != 3 {
					t.Fatalf("%s has desired %s of %q", name, s.Desired, s.AppliedTasks)
				}
			}
		})
	}
}

// TestTriggerSkips : a trigger keeps a row from being written, so the device has no
// result. The error says more than that somebody else was faster.
func TestTriggerSkips(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 30)
	h.trigger(t, "skip", "BEFORE UPDATE OR INSERT", `IF NEW.device_name IN ('device-0000011', 'new') THEN RETURN NULL; END IF; RETURN NEW;`)
	u := update(t, "task", `{"state":"open"}`)
	for _, r := range h.store.ApplyDesired(t.Context(), p, u, names) {
		if !errors.Is(r.Err, errNotWritten) || !strings.Contains(r.Err.Error(), "trigger") {
			t.Fatalf("delta %s, error %v; want %v", r.Delta, r.Err, errNotWritten)
		}
	}
	if err := h.store.ChangeShadow(t.Context(), p, names[11], comply); !errors.Is(err, errNotWritten) {
		t.Errorf("ChangeShadow: error %v, want %v", err, errNotWritten)
	}
	sum, err := h.store.Import(t.Context(), p, given(Device{Name: "new"}, Device{Name: "newer"}))
	if _, is := errors.AsType[*contradictionError](err); !is || sum != (ImportSummary{}) {
		t.Errorf("import: %+v, error %v", sum, err)
	}
}

// TestRowsInAnyOrder : the settings of the session do not count, as behind a pooler that
// leaves them out, and the server returns rows as they lie in the table.
func TestRowsInAnyOrder(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	const n = 20_000
	devices, names := make([]Device, n), make([]string, n)
	for i := range devices {
		devices[i] = seeded(i, 90)
		devices[i].Shadow.AppliedTasks = []string{"one", "two"}
		if i%100 == 7 {
			devices[i].Shadow.Reported = `{"battery":1}`
		}
		names[i] = devices[i].Name
	}
	random := rand.New(rand.NewPCG(3, 4))
	random.Shuffle(n, func(a, b int) { devices[a], devices[b] = devices[b], devices[a] })
	h.copyInto(t, "batchtask_device", p, devices)
	h.all(t, "ANALYZE batchtask_device")
	h.store = open(t, Options{URL: h.url, MaxConns: 1})
	for _, setting := range []string{"enable_seqscan = on", "enable_indexscan = off", "enable_indexonlyscan = off", "enable_bitmapscan = off", "plan_cache_mode = auto"} {
		if _, err := h.store.pool.Exec(t.Context(), "SET "+setting); err != nil {
			t.Fatal(err)
		}
	}
	for round, chunk := range []int{n, 1000, 300} {
		h.likeSeed()
		if round > 0 {
			h.store.expected.Load().tasks = 2 + round
		}
		u := update(t, fmt.Sprint("task-", round), fmt.Sprintf(`{"state":"open","n":%d}`, round))
		for at := 0; at < n; at += chunk {
			part := names[at:min(at+chunk, n)]
			for i, r := range h.store.ApplyDesired(t.Context(), p, u, part) {
				want := fmt.Sprintf(`"version":%d,`, round+2)
				if r.Err != nil || !strings.Contains(string(r.Delta), want) {
					t.Fatalf("%s: delta %s, error %v; want one with %s", part[i], r.Delta, r.Err, want)
				}
			}
		}
	}
	var wrong int
	err := h.pool.QueryRow(t.Context(), `SELECT count(*) FROM batchtask_device WHERE version <> 4 OR cardinality(applied_tasks) <> 5`).Scan(&wrong)
	if err != nil || wrong != 0 {
		t.Errorf("%d shadows were not changed once by each task (error %v)", wrong, err)
	}
}

// lie puts a view in the place of the devices, with some of its columns made anew.
func (h *harness) lie(t *testing.T, columns map[string]string, more string) {
	t.Helper()
	var list []string
	for _, column := range []string{
		"ctid", "xmin", "namespace", "product_id", "device_name", "disabled", "version", "changed_ms", "reported", "desired", "metadata", "applied_tasks", "acknowledged",
	} {
		expression, is := columns[column]
		if !is {
			expression = column
		}
		list = append(list, expression+" AS "+column)
	}
	h.all(t, "ALTER TABLE batchtask_device RENAME TO truth")
	h.all(t, "CREATE VIEW batchtask_device AS SELECT "+strings.Join(list, ", ")+" FROM truth "+more)
}

// TestLies : a view in the place of the table says what no table of ours says.
func TestLies(t *testing.T) {
	server := pgtest.Start(t)
	const one = "device-0000003"
	ifOne := func(value, column string) string {
		return "CASE WHEN device_name = '" + one + "' THEN " + value + " ELSE " + column + " END"
	}
	for name, tt := range map[string]struct {
		columns map[string]string
		more    string
		// What is in the errors of Scan, of all devices, or of the one device alone; "" for none.
		scan, all, alone string
	}{
		"all devices twice":         {more: "UNION ALL SELECT ctid, xmin, * FROM truth", scan: "not their order", all: "two rows"},
		"a name that is a topic":    {columns: map[string]string{"device_name": ifOne("'device-0000003/x'", "device_name")}, scan: "no name of a device"},
		"a name that is a wildcard": {columns: map[string]string{"device_name": ifOne("'device-0+'", "device_name")}, scan: "no name of a device"},
		"no version":                {columns: map[string]string{"version": ifOne("NULL", "version")}, all: "column 4 of a row has 0 bytes, not 8"},
		"another type":              {columns: map[string]string{"version": "version::integer"}, all: "column 4 of a row has 4 bytes, not 8"},
		"no document":               {columns: map[string]string{"reported": ifOne("NULL", "reported")}, all: "device \"" + one + "\""},
		"a version below 0":         {columns: map[string]string{"version": ifOne("-1", "version")}, alone: "version -1, below 0"},
		"the last version":          {columns: map[string]string{"version": ifOne("9223372036854775807", "version")}, alone: "cannot change any more"},
		"too many tasks":            {columns: map[string]string{"applied_tasks": ifOne("array_fill('x'::text, ARRAY[17])", "applied_tasks")}, alone: "17 tasks"},
		"too many acknowledged":     {columns: map[string]string{"acknowledged": ifOne("3::smallint", "acknowledged")}, alone: "3 of them acknowledged"},
		"a document without end":    {columns: map[string]string{"reported": ifOne(`'{"a":"' || repeat('x', 70000) || '"}'`, "reported")}, alone: "longer than 65536 characters"},
		"metadata without end":      {columns: map[string]string{"metadata": ifOne(`'{"a":"' || repeat('x', 600000) || '"}'`, "metadata")}, alone: "longer than 524288 characters"},
		"no JSON":                   {columns: map[string]string{"desired": ifOne(`'{'`, "desired")}, alone: "reading the stored desired part"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, server)
			p := h.Product(t)
			names := h.seed(t, p, 10)
			h.lie(t, tt.columns, tt.more)
			says := func(what string, err error, want string) {
				t.Helper()
				if want == "" && err != nil || want != "" && !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("%s: error %v, want %q", what, err, want)
				}
			}
			_, _, err := h.store.Scan(t.Context(), fleet.Query{Product: p}, 20)
			says("Scan", err, tt.scan)
			if tt.scan != "" && tt.all == "" {
				return
			}
			u := update(t, "task", `{"state":"closed"}`)
			for _, of := range [][]string{names, {names[0], names[3], names[6]}} { // as a range, and by name
				a := &application{store: h.store, product: p, update: u, memo: newMemo(u)}
				devices := make([]*device, len(of))
				for i, name := range of {
					devices[i] = &device{name: name}
				}
				says("reading", a.read(t.Context(), h.store.pool, false, devices), tt.all)
				for _, d := range devices {
					if tt.all != "" {
						continue
					}
					want := ""
					if d.name == one {
						want = tt.alone
					}
					says(d.name, d.result.Err, want)
					if _, is := errors.AsType[*fleet.DeviceError](d.result.Err); is != (want != "") || is == d.write {
						t.Errorf("%s: error %#v, to be written: %v", d.name, d.result.Err, d.write)
					}
				}
			}
		})
	}
}

// TestLastVersion : somebody has written the last version there is. That shadow cannot
// change, for a reason that is said, and the others do.
func TestLastVersion(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	names := h.seed(t, p, 40)
	h.exec(t, `UPDATE batchtask_device SET version = $4`+this, p.Namespace, p.ProductID, names[7], int64(math.MaxInt64))
	h.likeSeed()
	for i, r := range h.store.ApplyDesired(t.Context(), p, update(t, "task", `{"state":"open"}`), names) {
		final, is := errors.AsType[*fleet.DeviceError](r.Err)
		if is != (i == 7) || is && !strings.Contains(final.Message, "write a lower version") || !is && r.Delta == nil {
			t.Errorf("%s: delta %s, error %v", names[i], r.Delta, r.Err)
		}
	}
	if err := h.store.ChangeShadow(t.Context(), p, names[7], comply); !errors.Is(err, shadow.ErrLastVersion) {
		t.Errorf("ChangeShadow: error %v, want %v", err, shadow.ErrLastVersion)
	}
}

// TestBulky : shadows whose documents are too large together are written in parts.
func TestBulky(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	var names []string
	const n = 80
	for i := range n {
		d := fleettest.Device{Name: deviceName(i), Shadow: fleet.Shadow{}}
		d.Shadow.Version = int64(i + 1) // as seed has it
		d.Shadow.Metadata = fmt.Sprintf(`{"x":"%d%s"}`, i, strings.Repeat("x", 500_000))
		names = append(names, d.Name)
		h.Create(t, p, d)
	}
	if n*500_000 < applyBytes {
		t.Fatal("they are not too large: the test shows nothing")
	}
	u := update(t, "task", `{"state":"open"}`)
	a := &application{store: h.store, product: p, update: u, memo: newMemo(u)}
	devices := make([]*device, n)
	for i, name := range names {
		devices[i] = &device{name: name}
	}
	if _, err := a.try(t.Context(), h.store.pool, false, devices); !errors.Is(err, errBulky) {
		t.Errorf("error %v, want %v", err, errBulky)
	}
	h.applyAll(t, h.store, p, u, names)
	h.wantApplied(t, p, "task", n)
}

// TestAcknowledgedLies : a count that cannot be is none.
func TestAcknowledgedLies(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	p := h.Product(t)
	h.exec(t, `INSERT INTO batchtask_acknowledged (namespace, product_id, task_uid, shard, devices) VALUES ($1, $2, 'uid', 0, -1)`, p.Namespace, p.ProductID)
	if counts, err := h.store.Acknowledged(t.Context(), p, []string{"uid"}); err == nil {
		t.Errorf("counts %v, want an error", counts)
	}
}

// Whoever reads all tasks of a database reads page after page, and ends.
func TestTasksGoUp(t *testing.T) {
	kept := func(uids ...string) (page []fleet.KeptResults) {
		for _, uid := range uids {
			page = append(page, fleet.KeptResults{TaskUID: uid})
		}
		return page
	}
	full := make([]fleet.KeptResults, tasksPage)
	full[tasksPage-1].TaskUID = "m"
	for name, tt := range map[string]struct {
		page  []fleet.KeptResults
		after string
		next  fleet.KeptResults
		want  string
	}{
		"the first":          {nil, "a", kept("b")[0], ""},
		"the next":           {kept("b"), "a", kept("c")[0], ""},
		"the same page":      {nil, "b", kept("b")[0], "not their order"},
		"one twice":          {kept("b", "c"), "a", kept("c")[0], "not their order"},
		"one before":         {kept("b", "c"), "a", kept("b")[0], "not their order"},
		"more than a page":   {full, "", kept("n")[0], "more than the 1000"},
		"no name of a task":  {nil, "", fleet.KeptResults{TaskUID: "a", TaskName: strings.Repeat("x", maxText+1)}, "a text of 4097 bytes"},
		"no epoch of anyone": {nil, "", fleet.KeptResults{TaskUID: "a", Epoch: strings.Repeat("x", maxText+1)}, "a text of 4097 bytes"},
	} {
		err := follows(tt.page, tt.after, tt.next)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

// Rows that nobody has asked for are not kept.
func TestMoreRowsThanAskedFor(t *testing.T) {
	h := newHarness(t, pgtest.Start(t))
	for most, want := range map[int]bool{3: true, 2: false} {
		rows, err := h.pool.Query(t.Context(), `SELECT generate_series(1, 3)`)
		if err != nil {
			t.Fatal(err)
		}
		got, err := some(rows, most, pgx.RowTo[int])
		if _, is := errors.AsType[*contradictionError](err); (err == nil) != want || is == want || len(got) > most {
			t.Errorf("%d at most: %v, error %v", most, got, err)
		}
	}
}
