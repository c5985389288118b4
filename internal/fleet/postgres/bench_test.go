package postgres

import (
	"flag"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres/pgtest"
	"batchtask.dev/operator/internal/namefilter"
	"batchtask.dev/operator/internal/shadow"
)

// go test -run - -bench . -benchtime 3x -devices 1000000 ./internal/fleet/postgres
var benchDevices = flag.Int("devices", 100_000, "devices of the product that is measured")

// stopwatch measures the processor time of the test and of the server.
type stopwatch struct {
	b      *testing.B
	server *pgtest.Server
	start  time.Time
	cpu    time.Duration
}

func (s *stopwatch) self() time.Duration {
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		s.b.Fatal(err)
	}
	return time.Duration(self.Utime.Nano() + self.Stime.Nano())
}

func (s *stopwatch) cpuNow() time.Duration { return s.server.CPU(s.b) + s.self() }

func startWatch(b *testing.B, server *pgtest.Server) *stopwatch {
	s := &stopwatch{b: b, server: server}
	s.start, s.cpu = time.Now(), s.cpuNow()
	return s
}

// stop returns the times since the start, for each of n devices.
func (s *stopwatch) stop(n int) (wall, cpu time.Duration) {
	return time.Since(s.start) / time.Duration(n), (s.cpuNow() - s.cpu) / time.Duration(n)
}

func benchHarness(b *testing.B) (*pgtest.Server, *harness, fleet.Product, []string) {
	b.Helper()
	server := pgtest.Start(b, pgtest.WithSetting("autovacuum", "off"))
	h := newHarness(b, server)
	p := h.Product(b)
	names := h.seed(b, p, *benchDevices)
	h.exec(b, "VACUUM (FREEZE, ANALYZE) batchtask_device")
	return server, h, p, names
}

// BenchmarkApplyDesired carries an update out as a task does, in batches, and as one
// statement that sets the same columns of the same rows.
func BenchmarkApplyDesired(b *testing.B) {
	for _, batch := range []int{256, 4096} {
		b.Run(fmt.Sprint("batch=", batch), func(b *testing.B) {
			server, h, p, names := benchHarness(b)
			patch, err := shadow.ParseDesired(`{"state":"open"}`)
			if err != nil {
				b.Fatal(err)
			}
			var own time.Duration // of cpu, that of this process
			var wall, cpu, plainWall, plainCPU time.Duration
			round := 0
			for b.Loop() {
				round++
				watch := startWatch(b, server)
				h.all(b, `UPDATE batchtask_device SET desired = $3, metadata = $4, version = version + 1 WHERE namespace = $1 AND product_id = $2 AND device_name <> ''`,
					p.Namespace, p.ProductID, `{"state":"closed"}`, fmt.Sprintf(`{"reported":{"battery":{"timestamp":1700000000000},"firmware":{"timestamp":1690000000000},"position":{"lat":{"timestamp":1700000000000},"lon":{"timestamp":1700000000000}},"state":{"timestamp":1700000000000}},"desired":{"state":{"timestamp":%d}}}`, 1695000000000+round))
				w, c := watch.stop(len(names))
				plainWall, plainCPU = plainWall+w, plainCPU+c
				h.exec(b, "VACUUM batchtask_device")

				u := fleet.DesiredUpdate{TaskUID: fmt.Sprintf("5e0f4fca-5b7c-4a5c-9a8e-%012d", round), Patch: patch, Now: time.UnixMilli(1700000000000 + int64(round))}
				before := watch.self()
				watch = startWatch(b, server)
				for at := 0; at < len(names); at += batch {
					for _, result := range h.store.ApplyDesired(b.Context(), p, u, names[at:min(at+batch, len(names))]) {
						if result.Err != nil || result.Delta == nil {
							b.Fatalf("delta %s, error %v", result.Delta, result.Err)
						}
					}
				}
				w, c = watch.stop(len(names))
				wall, cpu, own = wall+w, cpu+c, own+(watch.self()-before)/time.Duration(len(names))
				h.exec(b, "VACUUM batchtask_device")
			}
			n := float64(b.N)
			b.ReportMetric(float64(cpu.Nanoseconds())/n/1000, "cpu-µs/device")
			b.ReportMetric(float64(own.Nanoseconds())/n/1000, "client-cpu-µs/device")
			b.ReportMetric(float64(plainCPU.Nanoseconds())/n/1000, "plain-cpu-µs/device")
			b.ReportMetric(float64(cpu)/float64(plainCPU), "cpu-ratio")
			b.ReportMetric(float64(wall.Nanoseconds())/n/1000, "wall-µs/device")
			b.ReportMetric(float64(plainWall.Nanoseconds())/n/1000, "plain-wall-µs/device")
			b.ReportMetric(h.hot(b), "hot-share")
		})
	}
}

// all runs a statement that may change any number of rows.
func (h *harness) all(b testing.TB, sql string, args ...any) {
	b.Helper()
	if _, err := h.pool.Exec(b.Context(), sql, args...); err != nil {
		b.Fatal(err)
	}
}

// hot returns how many of all updates did not write the index.
func (h *harness) hot(b *testing.B) (share float64) {
	b.Helper()
	err := h.pool.QueryRow(b.Context(), `SELECT n_tup_hot_upd::float8 / greatest(n_tup_upd, 1) FROM pg_stat_user_tables WHERE relname = 'batchtask_device'`).Scan(&share)
	if err != nil {
		b.Fatal(err)
	}
	return share
}

// BenchmarkScan reads all names of a product in pages, and with one statement.
func BenchmarkScan(b *testing.B) {
	server, h, p, names := benchHarness(b)
	filters := map[string]*namefilter.Filter{
		"all": nil, "dotstar": namefilter.MustParse(`.*`), "one-in-10": namefilter.MustParse(`0$`),
		"none": namefilter.MustParse(`door$`), "prefix": namefilter.MustParse(`^device-00001`),
	}
	for name, filter := range filters {
		b.Run(name, func(b *testing.B) {
			watch := startWatch(b, server)
			for b.Loop() {
				q := fleet.Query{Product: p, Filter: filter}
				for more := true; more; {
					var page []string
					var err error
					if page, more, err = h.store.Scan(b.Context(), q, 512); err != nil {
						b.Fatal(err)
					}
					if more {
						q.After = page[len(page)-1]
					}
				}
			}
			wall, cpu := watch.stop(b.N * len(names))
			b.ReportMetric(float64(wall.Nanoseconds()), "wall-ns/device")
			b.ReportMetric(float64(cpu.Nanoseconds()), "cpu-ns/device")
		})
	}
	b.Run("plain", func(b *testing.B) {
		watch := startWatch(b, server)
		for b.Loop() {
			rows, err := h.pool.Query(b.Context(), `SELECT device_name FROM batchtask_device WHERE namespace = $1 AND product_id = $2 AND NOT disabled ORDER BY device_name`, p.Namespace, p.ProductID)
			if err != nil {
				b.Fatal(err)
			}
			rows.Close()
		}
		wall, cpu := watch.stop(b.N * len(names))
		b.ReportMetric(float64(wall.Nanoseconds()), "wall-ns/device")
		b.ReportMetric(float64(cpu.Nanoseconds()), "cpu-ns/device")
	})
}

// BenchmarkRecord records the results of 250 devices after those of others.
func BenchmarkRecord(b *testing.B) {
	h := newHarness(b, pgtest.Start(b))
	p := h.Product(b)
	next := 0
	h.take(b, "uid", epoch, "", 0)
	b.ResetTimer()
	for range b.N {
		part := fleet.ResultRange{At: time.UnixMilli(1), Epoch: epoch}
		if next > 0 {
			part.After = deviceName(next - 1)
		}
		for range 250 {
			part.Succeeded = append(part.Succeeded, deviceName(next))
			next++
		}
		part.Upto = deviceName(next - 1)
		if err := h.store.Results().Record(b.Context(), "uid", p, part); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkImport imports all devices into an empty product, whose documents are the
// same or all different, and as one COPY of the same rows into a table of the same
// columns and constraints.
func BenchmarkImport(b *testing.B) {
	devices := map[string]func(i int) Device{
		"same": func(i int) Device { return seeded(i, 90) },
		"different": func(i int) Device {
			d := seeded(i, i)
			d.Shadow.Metadata = strings.ReplaceAll(d.Shadow.Metadata, "1700000000000", strconv.Itoa(1600000000000+i))
			return d
		},
	}
	for name, device := range devices {
		b.Run(name, func(b *testing.B) {
			server := pgtest.Start(b, pgtest.WithSetting("autovacuum", "off"))
			h := newHarness(b, server)
			all := make([]Device, *benchDevices)
			for i := range all {
				all[i] = device(i)
			}
			var own, wall, cpu, plainWall, plainCPU time.Duration
			for b.Loop() {
				p := h.Product(b)
				h.all(b, `CREATE TABLE copied (LIKE batchtask_device INCLUDING ALL)`)
				watch := startWatch(b, server)
				h.copyInto(b, "copied", p, all)
				w, c := watch.stop(len(all))
				plainWall, plainCPU = plainWall+w, plainCPU+c
				h.all(b, `DROP TABLE copied`)
				h.all(b, `TRUNCATE batchtask_device`)
				h.all(b, `CHECKPOINT`)

				watch = startWatch(b, server)
				before := watch.self()
				sum, err := h.store.Import(b.Context(), p, given(all...))
				if err != nil || sum.Added != int64(len(all)) {
					b.Fatalf("%+v, error %v", sum, err)
				}
				w, c = watch.stop(len(all))
				wall, cpu, own = wall+w, cpu+c, own+(watch.self()-before)/time.Duration(len(all))
			}
			n := float64(b.N) * 1000
			b.ReportMetric(float64(plainWall)/float64(wall), "rate-ratio")
			b.ReportMetric(float64(wall.Nanoseconds())/n, "wall-µs/device")
			b.ReportMetric(float64(plainWall.Nanoseconds())/n, "plain-wall-µs/device")
			b.ReportMetric(float64(cpu.Nanoseconds())/n, "cpu-µs/device")
			b.ReportMetric(float64(own.Nanoseconds())/n, "client-cpu-µs/device")
			b.ReportMetric(float64(plainCPU.Nanoseconds())/n, "plain-cpu-µs/device")
		})
	}
}
