package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// An import beside a COPY of the same rows.
const (
	importRounds = 3
	copyLimitIs  = "COPY of the same rows into a table of the same columns and constraints, in one transaction"
)

// commonShadow is what most devices have.
var commonShadow = fleet.Shadow{
	Stored: shadow.Stored{
		Reported: `{"battery":90,"firmware":"4.2.11","position":{"lat":52.3702,"lon":4.8952},"state":"closed"}`,
		Desired:  `{"state":"closed"}`,
		Metadata: `{"reported":{"battery":{"timestamp":1700000000000},"firmware":{"timestamp":1690000000000},` +
			`"position":{"lat":{"timestamp":1700000000000},"lon":{"timestamp":1700000000000}},"state":{"timestamp":1700000000000}},` +
			`"desired":{"state":{"timestamp":1695000000000}}}`,
		Version: 1, Timestamp: 1_700_000_000_000,
	},
}

// measureImport imports all devices, each time into a product of its own, the last
// time into the one that the tasks are for.
func (c postgresCase) measureImport(ctx context.Context) (figure, error) {
	var rates, limits series
	size := float64(len(c.names))
	for round := range importRounds {
		limits.add(c.copyRows(ctx))
		p := fleet.Product{Namespace: c.env.Namespace, ProductID: productID}
		if round < importRounds-1 {
			p.ProductID += fmt.Sprint("X", round)
		}
		if err := c.database.rest(ctx); err != nil {
			return figure{}, err
		}
		started := time.Now()
		if err := c.database.add(ctx, p, c.names, commonShadow); err != nil {
			return figure{}, err
		}
		rates.add(size/time.Since(started).Seconds(), nil)
		if p.ProductID != productID {
			if _, err := c.database.conn.Exec(ctx, `DELETE FROM batchtask_device WHERE product_id = $1`, p.ProductID); err != nil {
				return figure{}, fmt.Errorf("remove imported devices: %w", err)
			}
		}
		progress(fmt.Sprintf("%.0f devices: import %s, COPY %s", size, rates.last(), limits.last()))
	}
	return newFigure(fmt.Sprintf("import of %d devices into PostgreSQL", len(c.names)), "devices/s", rates.median()).
		beside(limits.median(), copyLimitIs).aiming(c.aims(0.5)), nil
}

// copyRows writes the rows of an import into a table of their own and returns the rate
// in rows a second.
func (c postgresCase) copyRows(ctx context.Context) (float64, error) {
	conn := c.database.conn
	// The settings of a table are not among ALL: its pages are filled.
	if _, err := conn.Exec(ctx, `CREATE TABLE copied (LIKE batchtask_device INCLUDING ALL)`); err != nil {
		return 0, fmt.Errorf("make a table to copy into: %w", err)
	}
	if err := c.database.rest(ctx); err != nil {
		return 0, err
	}
	columns := []string{"namespace", "product_id", "device_name", "disabled", "version", "changed_ms", "reported", "desired", "metadata", "applied_tasks"}
	started := time.Now()
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"copied"}, columns, pgx.CopyFromSlice(len(c.names), func(i int) ([]any, error) {
		return []any{
			c.env.Namespace, productID, c.names[i], false, commonShadow.Version, commonShadow.Timestamp,
			commonShadow.Reported, commonShadow.Desired, commonShadow.Metadata,
			[]string{},
		}, nil
	}))
	took := time.Since(started)
	if err != nil {
		err = fmt.Errorf("copy rows: %w", err)
	}
	_, dropErr := conn.Exec(ctx, `DROP TABLE copied`)
	return float64(len(c.names)) / took.Seconds(), errors.Join(err, dropErr)
}
