package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
)

// Devices in a database: what a task over all of them costs beside the least that any
// program must do, a statement that writes the rows and a message to each device; and
// an import beside psql's \copy. Each figure is the median of some rounds, what stands beside
// it is measured in the same round.
//
// All of it is measured for two sizes, each with a manager and a database of its own, and
// the large one is set beside the small one. What is aimed at holds for the large one: at
// the small one, the time that any task takes weighs most.
const (
	baseSize      = 10_000
	baseRounds    = 9 // they are short
	largeRounds   = 3
	updateLimitIs = "one UPDATE of desired, metadata and version of the same rows, and then that writer"
)

// postgresCase is a product with devices in a database.
type postgresCase struct {
	env      *localenv.Env
	database *database
	names    []string
	rounds   int // of tasks
	large    bool
}

// postgresFigures are those of one size.
type postgresFigures struct {
	devices                                            int
	publish, publishProcessor, update, updateProcessor figure
	peak                                               figure
	imports                                            []figure
}

func (f postgresFigures) all() []figure {
	return append([]figure{f.publish, f.publishProcessor, f.update, f.updateProcessor, f.peak}, f.imports...)
}

// postgresSizes keeps what the small size gave for the large one.
type postgresSizes struct{ base postgresFigures }

func (s *postgresSizes) measureBase(ctx context.Context, env *localenv.Env) ([]figure, error) {
	var err error
	s.base, err = measurePostgres(ctx, env, postgresCase{names: deviceNames(baseSize), rounds: baseRounds})
	if err != nil {
		return nil, err
	}
	return s.base.all(), nil
}

func (s *postgresSizes) measureLarge(size int) func(context.Context, *localenv.Env) ([]figure, error) {
	return func(ctx context.Context, env *localenv.Env) ([]figure, error) {
		large, err := measurePostgres(ctx, env, postgresCase{names: deviceNames(size), rounds: largeRounds, large: true})
		if err != nil {
			return nil, err
		}
		return append(large.all(), bySize(s.base, large)...), nil
	}
}

// bySize sets a size beside a smaller one.
func bySize(base, large postgresFigures) []figure {
	sizes := fmt.Sprintf("%d devices over %d", large.devices, base.devices)
	ratio := func(kind string, base, large figure) figure {
		return newFigure(kind+", ratio to its limit, "+sizes, unitRatio, large.ratio()).
			beside(base.ratio(), "the ratio of "+base.Case).aiming(&aim{ofRatio, atLeast, 0.95})
	}
	processor := func(kind string, base, large figure) figure {
		return newFigure(kind+", processor time of the manager, "+sizes, large.Unit, large.value()).beside(base.value(), base.Case)
	}
	return []figure{
		ratio("PublishMessage", base.publish, large.publish),
		ratio("UpdateShadow", base.update, large.update),
		newFigure("manager, peak memory, "+sizes, "MiB resident", large.peak.value()).
			beside(base.peak.value(), base.peak.Case).aiming(&aim{ofRatio, atMost, 1.2}),
		// Steadier than time where the machine is shared.
		processor("PublishMessage", base.publishProcessor, large.publishProcessor),
		processor("UpdateShadow", base.updateProcessor, large.updateProcessor),
	}
}

func measurePostgres(ctx context.Context, env *localenv.Env, c postgresCase) (postgresFigures, error) {
	f := postgresFigures{devices: len(c.names)}
	db, err := openDatabase(ctx, env)
	if err != nil {
		return f, err
	}
	defer db.close(ctx)
	c.env, c.database = env, db
	if err := makeDatabaseProduct(ctx, env); err != nil {
		return f, err
	}
	if f.imports, err = c.measureImport(ctx); err != nil {
		return f, err
	}
	peak := watchMemory(ctx, env.MetricsURL)
	err = c.measureTasks(ctx, &f)
	f.peak = newFigure(fmt.Sprintf("manager, peak memory, tasks over %d devices in PostgreSQL", f.devices), "MiB resident", peak())
	if c.large {
		f.peak = f.peak.aiming(&aim{ofValue, atMost, 200})
	}
	return f, err
}

// aims is an aim for a ratio, which only the large size has.
func (c postgresCase) aims(bound float64) *aim {
	if !c.large {
		return nil
	}
	return &aim{ofRatio, atLeast, bound}
}

// measureTasks runs tasks of both kinds over all devices.
func (c postgresCase) measureTasks(ctx context.Context, f *postgresFigures) error {
	var publishes, updates taskRounds
	size := float64(len(c.names))
	for round := range c.rounds {
		writer, writerErr := bestWriter(ctx, c.env.MQTTURL, c.names)
		publishes.limits.add(writer, writerErr)
		if err := c.run(ctx, &publishes, newTask(c.env.Namespace, fmt.Sprintf("publish-%d", round), productID, ".*")); err != nil {
			return err
		}
		progress(fmt.Sprintf("%.0f devices: PublishMessage %s, writer %s", size, publishes.rates.last(), publishes.limits.last()))

		statement, statementErr := c.updateRows(ctx, round)
		updates.limits.add(size/(statement.Seconds()+size/writer), errors.Join(statementErr, writerErr))
		if err := c.run(ctx, &updates, c.updateTask(round)); err != nil {
			return err
		}
		progress(fmt.Sprintf("%.0f devices: UpdateShadow %s, UPDATE (%v) and writer %s", size, updates.rates.last(), statement, updates.limits.last()))
	}
	over := fmt.Sprintf(" over %d devices in PostgreSQL", len(c.names))
	f.publish, f.publishProcessor = publishes.figures("PublishMessage"+over, writerLimitIs, c.aims(0.9))
	f.update, f.updateProcessor = updates.figures("UpdateShadow"+over, updateLimitIs, c.aims(0.85))
	return nil
}

func (c postgresCase) run(ctx context.Context, rounds *taskRounds, task *v1alpha1.BatchTask) error {
	if err := c.database.rest(ctx); err != nil {
		return err
	}
	return rounds.run(ctx, c.env, task, len(c.names))
}

func (c postgresCase) updateTask(round int) *v1alpha1.BatchTask {
	task := newTask(c.env.Namespace, fmt.Sprintf("update-%d", round), productID, ".*")
	task.Spec.TaskType = v1alpha1.TaskTypeUpdateShadow
	task.Spec.Tasks = v1alpha1.TaskDetails{UpdateShadowTask: &v1alpha1.UpdateShadowTask{Desired: `{"state":"open"}`}}
	return task
}

// updateRows writes what a task changes of the shadows, with one statement.
func (c postgresCase) updateRows(ctx context.Context, round int) (time.Duration, error) {
	if err := c.database.rest(ctx); err != nil {
		return 0, err
	}
	started := time.Now()
	tag, err := c.database.conn.Exec(ctx, `UPDATE batchtask_device SET desired = $3, metadata = $4, version = version + 1 WHERE namespace = $1 AND product_id = $2`,
		c.env.Namespace, productID, fmt.Sprintf(`{"state":"shut","round":%d}`, round), commonShadow.Metadata)
	took := time.Since(started)
	if err == nil && tag.RowsAffected() != int64(len(c.names)) {
		err = fmt.Errorf("%d rows were changed, want %d", tag.RowsAffected(), len(c.names))
	}
	if err != nil {
		err = fmt.Errorf("update rows: %w", err)
	}
	return took, err
}
