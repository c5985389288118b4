package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// An import by the program, beside psql's \copy of the same file into a table of the same
// columns and constraints.
const (
	importRounds = 3
	copyLimitIs  = `psql \copy of the same file into a table like that of devices, which leaves the metadata out`
	// productName is the Product that devices are imported into.
	productName = "bench"
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

// documentsOf returns the reported and the desired part of a device.
type documentsOf func(i int) (reported, desired string)

// alike gives all devices the same documents.
func alike(int) (reported, desired string) { return commonShadow.Reported, commonShadow.Desired }

// unlike gives each device documents of its own.
func unlike(i int) (reported, desired string) {
	return fmt.Sprintf(`{"battery":%d,"firmware":"4.2.11","position":{"lat":52.%06d,"lon":4.%06d},"state":"closed"}`, i%100, i, i),
		fmt.Sprintf(`{"channel":%d,"state":"closed"}`, i)
}

// measureImport imports all devices, first with documents that are all different, then
// with those that the tasks are to find.
func (c postgresCase) measureImport(ctx context.Context) (figures []figure, err error) {
	for _, kind := range []struct {
		name string
		of   documentsOf
	}{{"a shadow of its own each", unlike}, {"shadows alike", alike}} {
		f, err := c.measureImportOf(ctx, kind.name, kind.of)
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// measureImportOf imports the devices from a file some times. Those of the last time
// stay.
func (c postgresCase) measureImportOf(ctx context.Context, kind string, of documentsOf) (figure, error) {
	path := filepath.Join(filepath.Dir(c.env.KubeConfig), "devices.csv")
	if err := writeDevices(path, c.names, of); err != nil {
		return figure{}, err
	}
	defer os.Remove(path)
	var rates, limits series
	size := float64(len(c.names))
	for range importRounds {
		took, err := c.copyFile(ctx, path)
		limits.add(size/took.Seconds(), err)
		if _, err := c.database.conn.Exec(ctx, `DELETE FROM batchtask_device`); err != nil {
			return figure{}, fmt.Errorf("remove devices: %w", err)
		}
		if took, err = c.importFile(ctx, path); err != nil {
			return figure{}, err
		}
		rates.add(size/took.Seconds(), nil)
		progress(fmt.Sprintf(`%.0f devices, %s: import %s, psql \copy %s`, size, kind, rates.last(), limits.last()))
	}
	return newFigure(fmt.Sprintf("import of %d devices from CSV into PostgreSQL, %s", len(c.names), kind), "devices/s", rates.median()).
		beside(limits.median(), copyLimitIs).aiming(c.aims(0.5)), nil
}

// writeDevices writes a file of devices as people have them: with the header that imports
// read, and without metadata.
func writeDevices(path string, names []string, of documentsOf) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write devices: %w", err)
	}
	buffer := bufio.NewWriter(file)
	w := csv.NewWriter(buffer)
	lines := func() error {
		if err := w.Write([]string{"deviceName", "disabled", "version", "reported", "desired"}); err != nil {
			return err
		}
		for i, name := range names {
			reported, desired := of(i)
			if err := w.Write([]string{name, "false", strconv.FormatInt(commonShadow.Version, 10), reported, desired}); err != nil {
				return err
			}
		}
		w.Flush()
		return errors.Join(w.Error(), buffer.Flush())
	}
	if err := errors.Join(lines(), file.Close()); err != nil {
		return fmt.Errorf("write devices to %s: %w", path, err)
	}
	return nil
}

// importFile imports a file with the program, as people do.
func (c postgresCase) importFile(ctx context.Context, path string) (time.Duration, error) {
	if err := c.database.rest(ctx); err != nil {
		return 0, err
	}
	started := time.Now()
	out, err := exec.CommandContext(ctx, c.env.Program, "fleet", "import", productName,
		"--kubeconfig", c.env.KubeConfig, "--file", path).CombinedOutput()
	took := time.Since(started)
	if want := fmt.Sprintf("%d added, 0 updated, 0 unchanged, 0 bad lines", len(c.names)); err == nil && !strings.Contains(string(out), want) {
		err = fmt.Errorf("want %s", want)
	}
	if err != nil {
		return 0, fmt.Errorf("import %s: %w: %s", path, err, out)
	}
	return took, nil
}

// copyFile copies a file with psql into a table of its own.
func (c postgresCase) copyFile(ctx context.Context, path string) (took time.Duration, err error) {
	conn := c.database.conn
	// The settings of a table are not among ALL: its pages are filled.
	if _, err := conn.Exec(ctx, `CREATE TABLE copied (LIKE batchtask_device INCLUDING ALL)`); err != nil {
		return 0, fmt.Errorf("make a table to copy into: %w", err)
	}
	defer func() {
		_, dropErr := conn.Exec(ctx, `DROP TABLE copied`)
		err = errors.Join(err, dropErr)
	}()
	// The file does not have these two. Both are plain words.
	if _, err := conn.Exec(ctx, fmt.Sprintf(`ALTER TABLE copied ALTER namespace SET DEFAULT '%s', ALTER product_id SET DEFAULT '%s'`, c.env.Namespace, productID)); err != nil {
		return 0, fmt.Errorf("make a table to copy into: %w", err)
	}
	if err := c.database.rest(ctx); err != nil {
		return 0, err
	}
	started := time.Now()
	err = psql(ctx, c.env.DatabaseURL, fmt.Sprintf(`\copy copied (device_name, disabled, version, reported, desired) FROM '%s' WITH (FORMAT csv, HEADER)`, path))
	took = time.Since(started)
	if err != nil {
		return 0, err
	}
	var rows int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM copied`).Scan(&rows); err != nil || rows != len(c.names) {
		return 0, fmt.Errorf("psql copied %d rows, want %d: %w", rows, len(c.names), err)
	}
	return took, nil
}

// psql runs a command in PostgreSQL's own client. The password is not an argument, which
// all of the machine could read.
func psql(ctx context.Context, databaseURL, command string) error {
	programs, err := localenv.FindPostgres()
	if err != nil {
		return err
	}
	u, err := url.Parse(databaseURL)
	if err != nil {
		return fmt.Errorf("the database's URL: %w", err)
	}
	password, _ := u.User.Password()
	u.User = url.User(u.User.Username())
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--dbname="+u.String(), "--command="+command)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("psql: %w: %s", err, out)
	}
	return nil
}
