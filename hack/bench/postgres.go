package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/fleet/postgres"
)

// Devices in a database: what a task over all of them costs beside the least that any
// program must do, a statement that writes the rows and a message to each device; and
// an import beside a COPY. Each figure is the median of some rounds, what stands beside
// it is measured in the same round.
const (
	postgresRounds = 3
	copyLimitIs    = "COPY of the same rows into a table of the same columns and constraints, in one transaction"
	writerLimitIs  = "hand-written MQTT writer, window 1000, best of 1, 2 and 4 connections"
	updateLimitIs  = "one UPDATE of desired, metadata and version of the same rows, and then that writer"
	readyAfter     = time.Minute

	// What most devices have.
	shadowReported = `{"battery":90,"firmware":"4.2.11","position":{"lat":52.3702,"lon":4.8952},"state":"closed"}`
	shadowDesired  = `{"state":"closed"}`
	shadowMetadata = `{"reported":{"battery":{"timestamp":1700000000000},"firmware":{"timestamp":1690000000000},` +
		`"position":{"lat":{"timestamp":1700000000000},"lon":{"timestamp":1700000000000}},"state":{"timestamp":1700000000000}},` +
		`"desired":{"state":{"timestamp":1695000000000}}}`
	shadowChanged = 1_700_000_000_000
)

// postgresDevices is how many devices there are, by the environment's BENCH.
func postgresDevices() (int, error) {
	switch size := os.Getenv("BENCH"); size {
	case "quick":
		return 50_000, nil
	case "":
		return 200_000, nil
	case "full":
		return 1_000_000, nil
	default:
		return 0, fmt.Errorf("BENCH is %q: must be quick, full or empty", size)
	}
}

// postgresCase is a product with devices in a database.
type postgresCase struct {
	env   *localenv.Env
	store *postgres.Store
	conn  *pgx.Conn // for the limits
	names []string
}

func measurePostgres(ctx context.Context, env *localenv.Env) ([]figure, error) {
	size, err := postgresDevices()
	if err != nil {
		return nil, err
	}
	store, err := postgres.Open(ctx, postgres.Options{URL: env.DatabaseURL})
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	defer store.Close()
	conn, err := pgx.Connect(ctx, env.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	c := postgresCase{env: env, store: store, conn: conn, names: make([]string, size)}
	for i := range c.names {
		c.names[i] = fmt.Sprintf("door-%07d", i)
	}

	imports, err := c.measureImport(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.makeProduct(ctx); err != nil {
		return nil, err
	}
	memory := watchMemory(ctx, env.MetricsURL)
	tasks, err := c.measureTasks(ctx)
	peak := figure{
		Case: fmt.Sprintf("manager, peak memory, tasks over %d devices in PostgreSQL", size),
		Unit: "MiB resident", Value: memory() / (1 << 20), Aim: "<= 200",
	}
	if peak.Value == 0 {
		peak.NotMeasured = "the manager's metrics do not say it"
	}
	if err != nil {
		return nil, err
	}
	return append(tasks, peak, imports), nil
}

// measureImport imports all devices, each time into a product of its own, the last
// time into the one that the tasks are for.
func (c postgresCase) measureImport(ctx context.Context) (figure, error) {
	var rates []float64
	var limits limit
	for round := range postgresRounds {
		limits.add(c.copyRows(ctx))
		p := fleet.Product{Namespace: c.env.Namespace, ProductID: productID}
		if round < postgresRounds-1 {
			p.ProductID += fmt.Sprint("X", round)
		}
		if err := c.rest(ctx); err != nil {
			return figure{}, err
		}
		started := time.Now()
		sum, err := c.store.Import(ctx, p, c.rows())
		took := time.Since(started)
		if err == nil && sum.Added != int64(len(c.names)) {
			err = fmt.Errorf("%+v", sum)
		}
		if err != nil {
			return figure{}, fmt.Errorf("import of %d devices: %w", len(c.names), err)
		}
		rates = append(rates, float64(len(c.names))/took.Seconds())
		if p.ProductID != productID {
			if _, err := c.conn.Exec(ctx, `DELETE FROM batchtask_device WHERE product_id = $1`, p.ProductID); err != nil {
				return figure{}, fmt.Errorf("remove imported devices: %w", err)
			}
		}
		progress(fmt.Sprintf("%d devices: import %.0f/s, COPY %s", len(c.names), rates[round], limits.last()))
	}
	return limits.beside(figure{
		Case: fmt.Sprintf("import of %d devices into PostgreSQL", len(c.names)), Value: median(rates), Unit: "devices/s",
		LimitIs: copyLimitIs, Aim: ">= 0.5",
	}), nil
}

func (c postgresCase) rows() iter.Seq2[postgres.Device, error] {
	return func(yield func(postgres.Device, error) bool) {
		for _, name := range c.names {
			d := postgres.Device{Name: name}
			d.Shadow.Reported, d.Shadow.Desired, d.Shadow.Metadata = shadowReported, shadowDesired, shadowMetadata
			d.Shadow.Version, d.Shadow.Timestamp = 1, shadowChanged
			if !yield(d, nil) {
				return
			}
		}
	}
}

// copyRows writes the rows of an import into a table of their own and returns the rate
// in rows a second.
func (c postgresCase) copyRows(ctx context.Context) (float64, error) {
	// The settings of a table are not among ALL: its pages are filled.
	if _, err := c.conn.Exec(ctx, `CREATE TABLE copied (LIKE batchtask_device INCLUDING ALL)`); err != nil {
		return 0, fmt.Errorf("make a table to copy into: %w", err)
	}
	if err := c.rest(ctx); err != nil {
		return 0, err
	}
	columns := []string{"namespace", "product_id", "device_name", "disabled", "version", "changed_ms", "reported", "desired", "metadata", "applied_tasks"}
	started := time.Now()
	_, err := c.conn.CopyFrom(ctx, pgx.Identifier{"copied"}, columns, pgx.CopyFromSlice(len(c.names), func(i int) ([]any, error) {
		return []any{
			c.env.Namespace, productID, c.names[i], false, int64(1), int64(shadowChanged),
			shadowReported, shadowDesired, shadowMetadata,
			[]string{},
		}, nil
	}))
	took := time.Since(started)
	if err != nil {
		err = fmt.Errorf("copy rows: %w", err)
	}
	_, dropErr := c.conn.Exec(ctx, `DROP TABLE copied`)
	return float64(len(c.names)) / took.Seconds(), errors.Join(err, dropErr)
}

// rest leaves the database without rows to clean up and nothing to write, so that what
// is measured next does not pay for what was before it.
func (c postgresCase) rest(ctx context.Context) error {
	for _, statement := range []string{`VACUUM (ANALYZE) batchtask_device`, `CHECKPOINT`} {
		if _, err := c.conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// makeProduct makes the product and waits until tasks may run.
func (c postgresCase) makeProduct(ctx context.Context) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.env.Namespace, Name: "database"},
		StringData: map[string]string{v1alpha1.DatabaseURLKey: c.env.DatabaseURL},
	}
	product := &v1alpha1.Product{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.env.Namespace, Name: "bench"},
		Spec: v1alpha1.ProductSpec{ProductID: productID, Fleet: v1alpha1.Fleet{
			Type: v1alpha1.FleetTypePostgres, Postgres: &v1alpha1.PostgresFleet{SecretRef: v1alpha1.SecretReference{Name: secret.Name}},
		}},
	}
	for _, object := range []client.Object{secret, product} {
		if err := c.env.Client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %T %s: %w", object, object.GetName(), err)
		}
	}
	for deadline := time.Now().Add(readyAfter); ; time.Sleep(50 * time.Millisecond) {
		if err := c.env.Client.Get(ctx, client.ObjectKeyFromObject(product), product); err != nil {
			return fmt.Errorf("read product %s: %w", product.Name, err)
		}
		if meta.IsStatusConditionTrue(product.Status.Conditions, v1alpha1.ConditionReady) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("product %s is not ready after %v: %+v", product.Name, readyAfter, product.Status.Conditions)
		}
	}
}

// measureTasks runs tasks of both kinds over all devices.
func (c postgresCase) measureTasks(ctx context.Context) ([]figure, error) {
	var publishes, updates []float64
	var publishLimits, updateLimits limit
	size := float64(len(c.names))
	for round := range postgresRounds {
		writer, writerErr := bestWriter(ctx, c.env.MQTTURL, c.names)
		publishLimits.add(writer, writerErr)
		took, err := c.run(ctx, newTask(c.env, fmt.Sprintf("publish-%d", round), ".*"))
		if err != nil {
			return nil, err
		}
		publishes = append(publishes, size/took.Seconds())
		progress(fmt.Sprintf("%.0f devices: PublishMessage %.0f/s, writer %s", size, publishes[round], publishLimits.last()))

		statement, statementErr := c.updateRows(ctx, round)
		rate := size / (statement.Seconds() + size/writer)
		updateLimits.add(rate, errors.Join(statementErr, writerErr))
		if took, err = c.run(ctx, c.updateTask(round)); err != nil {
			return nil, err
		}
		updates = append(updates, size/took.Seconds())
		progress(fmt.Sprintf("%.0f devices: UpdateShadow %.0f/s, UPDATE (%v) and writer %s", size, updates[round], statement, updateLimits.last()))
	}
	figureOf := func(kind string, rates []float64, limitIs, aim string) figure {
		return figure{
			Case:  fmt.Sprintf("%s over %d devices in PostgreSQL, create to Done", kind, len(c.names)),
			Value: median(rates), Unit: "devices/s", LimitIs: limitIs, Aim: aim,
		}
	}
	return []figure{
		publishLimits.beside(figureOf("PublishMessage", publishes, writerLimitIs, ">= 0.90")),
		updateLimits.beside(figureOf("UpdateShadow", updates, updateLimitIs, ">= 0.85")),
	}, nil
}

func (c postgresCase) run(ctx context.Context, task *v1alpha1.BatchTask) (time.Duration, error) {
	if err := c.rest(ctx); err != nil {
		return 0, err
	}
	return runTask(ctx, c.env, task, len(c.names))
}

func (c postgresCase) updateTask(round int) *v1alpha1.BatchTask {
	task := newTask(c.env, fmt.Sprintf("update-%d", round), ".*")
	task.Spec.TaskType = v1alpha1.TaskTypeUpdateShadow
	task.Spec.Tasks = v1alpha1.TaskDetails{UpdateShadowTask: &v1alpha1.UpdateShadowTask{Desired: `{"state":"open"}`}}
	return task
}

// updateRows writes what a task changes of the shadows, with one statement.
func (c postgresCase) updateRows(ctx context.Context, round int) (time.Duration, error) {
	if err := c.rest(ctx); err != nil {
		return 0, err
	}
	started := time.Now()
	tag, err := c.conn.Exec(ctx, `UPDATE batchtask_device SET desired = $3, metadata = $4, version = version + 1 WHERE namespace = $1 AND product_id = $2`,
		c.env.Namespace, productID, fmt.Sprintf(`{"state":"shut","round":%d}`, round), shadowMetadata)
	took := time.Since(started)
	if err == nil && tag.RowsAffected() != int64(len(c.names)) {
		err = fmt.Errorf("%d rows were changed, want %d", tag.RowsAffected(), len(c.names))
	}
	if err != nil {
		err = fmt.Errorf("update rows: %w", err)
	}
	return took, err
}

// limit is what is measured beside a figure. Where a round of it fails, there is none.
type limit struct {
	rates []float64
	err   error
}

func (l *limit) add(rate float64, err error) {
	l.rates, l.err = append(l.rates, rate), errors.Join(l.err, err)
}

// last describes the last round.
func (l *limit) last() string {
	if l.err != nil {
		return "not measured"
	}
	return fmt.Sprintf("%.0f/s", l.rates[len(l.rates)-1])
}

// beside returns f with the limit.
func (l *limit) beside(f figure) figure {
	if l.err != nil {
		f.NotMeasured = l.err.Error()
		return f
	}
	f.Limit = median(l.rates)
	f.Ratio = f.Value / f.Limit
	return f
}
