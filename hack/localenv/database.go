package localenv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet/postgres"
	"batchtask.dev/operator/internal/pginstall"
)

// databaseTimeout bounds each use of a database that runs already.
const databaseTimeout = 15 * time.Second

// databaseNetworks lets the programs reach a database on this machine.
const databaseNetworks = "--database-networks=public,private,loopback"

// schema is that of this environment in a database that others use too. Its name is
// always the same for Dir, so the next Run removes what one has left that was killed.
func (s *session) schema() string {
	return fmt.Sprintf("batchtask_dev_%x", sha256.Sum256([]byte(s.Dir)))[:26]
}

// useDatabase makes an empty schema in the database of DatabaseURL until the end. It
// returns a URL by which only that is seen, and what to tell people about it.
func (s *session) useDatabase(ctx context.Context) (databaseURL, description string, err error) {
	u, err := url.Parse(s.DatabaseURL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		// The error would show the URL, and that may hold a password.
		return "", "", errors.New("DATABASE_URL is not a URL such as postgres://user:password@127.0.0.1:5432/database")
	}
	if _, err := postgres.Identity(s.DatabaseURL); err != nil {
		return "", "", err
	}
	schema := s.schema()
	query := u.Query()
	query.Set("search_path", schema)
	u.RawQuery = query.Encode()
	databaseURL = u.String()

	version, err := postgresVersion(ctx, databaseURL)
	if err != nil {
		return "", "", fmt.Errorf("the database of DATABASE_URL cannot be reached: %w", err)
	}
	if version < pginstall.Oldest {
		return "", "", fmt.Errorf("the database of DATABASE_URL is PostgreSQL %d, and must be %d or later", version, pginstall.Oldest)
	}
	drop := "DROP SCHEMA IF EXISTS " + schema + " CASCADE"
	for _, sql := range []string{drop, "CREATE SCHEMA " + schema} {
		if err := execSQL(ctx, databaseURL, sql); err != nil {
			return "", "", fmt.Errorf("making the schema %s in the database of DATABASE_URL, for which its user needs the right CREATE: %w", schema, err)
		}
	}
	s.onStop(func() error {
		if err := execSQL(context.WithoutCancel(ctx), databaseURL, drop); err != nil {
			return fmt.Errorf("removing the schema %s from the database of DATABASE_URL: %w", schema, err)
		}
		return nil
	})
	return databaseURL, fmt.Sprintf("PostgreSQL %d of DATABASE_URL, schema %s", version, schema), nil
}

// postgresVersion returns the major version of a server.
func postgresVersion(ctx context.Context, databaseURL string) (major int, err error) {
	err = withConn(ctx, databaseURL, func(ctx context.Context, conn *pgx.Conn) error {
		var number string
		if err := conn.QueryRow(ctx, "SHOW server_version_num").Scan(&number); err != nil {
			return err
		}
		major, err = strconv.Atoi(number)
		major /= 10000
		return err
	})
	return major, err
}

func execSQL(ctx context.Context, databaseURL, sql string) error {
	return withConn(ctx, databaseURL, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

// withConn uses a connection of its own.
func withConn(ctx context.Context, databaseURL string, use func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	return errors.Join(use(ctx, conn), conn.Close(ctx))
}
