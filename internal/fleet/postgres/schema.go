package postgres

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	// versionTable is where the migrations that were made are written down.
	versionTable = "batchtask_schema_version"
	// migrationLock is the advisory lock of who migrates: "batchtas" as a number. Every
	// database has its own.
	migrationLock int64 = 0x6261746368746173
	// Who finds the lock taken asks again each second, for five minutes.
	lockPeriodSeconds, lockAttempts = 1, 300
)

//go:embed migrations/*.sql
var embedded embed.FS

// SchemaError : the tables of the database are not those that this program knows.
// It stays until somebody does what it says.
type SchemaError struct {
	// Have is the version of the tables; 0 where there are none.
	Have int64
	// Want is the version that this program knows.
	Want int64
}

// Error says which is older, and what to do.
func (e *SchemaError) Error() string {
	if e.Have > e.Want {
		return fmt.Sprintf("the tables of the database have version %d and this program knows version %d: "+
			"a newer program has changed them; run that one, or one that is newer still", e.Have, e.Want)
	}
	return fmt.Sprintf("the tables of the database have version %d and this program needs version %d: "+
		"let a program of this version change them, or let this one do it", e.Have, e.Want)
}

// prepareSchema brings the tables up to date, unless keep is set, and returns a
// [*SchemaError] where they are not. Replicas may do so at the same time. It looks at them
// by conn, and changes them by connections of its own.
func prepareSchema(ctx context.Context, conn *pgx.Conn, config *pgx.ConnConfig, keep bool) error {
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	db := stdlib.OpenDB(*config)
	defer func() { _ = db.Close() }()

	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrationLock), lock.WithLockTimeout(lockPeriodSeconds, lockAttempts))
	if err != nil {
		return fmt.Errorf("preparing the migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations,
		goose.WithTableName(versionTable), goose.WithSessionLocker(locker), goose.WithLogger(goose.NopLogger()),
		goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("preparing the migrations: %w", err)
	}
	sources := provider.ListSources()
	want := slices.MaxFunc(sources, func(a, b *goose.Source) int { return int(a.Version - b.Version) }).Version

	// Before anything is written: the tables of a newer program are left alone.
	have, err := schemaVersion(ctx, conn)
	if err != nil || have == want {
		return err
	}
	if keep || have > want {
		return &SchemaError{Have: have, Want: want}
	}
	if _, err := provider.Up(ctx); err != nil {
		return failed("changing the tables", err)
	}
	if have, err = schemaVersion(ctx, conn); err == nil && have != want {
		err = &SchemaError{Have: have, Want: want}
	}
	return err
}

// schemaVersion returns the version of the tables; 0 where there are none.
func schemaVersion(ctx context.Context, conn *pgx.Conn) (version int64, err error) {
	const doing = "reading the version of the tables"
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", versionTable).Scan(&exists); err != nil || !exists {
		return 0, failed(doing, err)
	}
	err = conn.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+versionTable+" WHERE is_applied").Scan(&version)
	if err == nil && version < 0 {
		err = fmt.Errorf("%w: version %d", errAnswer, version)
	}
	return version, failed(doing, err)
}
