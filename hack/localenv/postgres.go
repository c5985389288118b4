package localenv

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/pginstall"
)

// FindPostgres returns the directory of PostgreSQL's programs, if it is installed.
func FindPostgres() (string, error) { return pginstall.Programs() }

// databaseDir is where the database is. Not in Dir: the user that PostgreSQL runs as
// may not be able to enter that. Its name is always the same for Dir, so the next Run
// removes what one has left that was killed.
func (s *session) databaseDir() string {
	return filepath.Join(s.systemTemp, fmt.Sprintf("batchtask-database-%x", sha256.Sum256([]byte(s.Dir)))[:40])
}

// startPostgres runs a server with an empty database, waits until it answers, and
// returns its URL. It waits for the disk as servers do that people trust.
func (s *session) startPostgres(ctx context.Context) (string, error) {
	programs, err := FindPostgres()
	if err != nil {
		return "", err
	}
	account, err := pginstall.Account()
	if err != nil {
		return "", err
	}
	password := rand.Text()
	dir := s.databaseDir()
	s.onStop(func() error { return os.RemoveAll(dir) })
	if err := makeDatabase(ctx, programs, dir, password, account); err != nil {
		return "", err
	}
	address, err := freeAddress(ctx, "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port for PostgreSQL: %w", err)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("the address of PostgreSQL, %q: %w", address, err)
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword("batchtask", password), Host: address, Path: "/postgres", RawQuery: "sslmode=disable"}
	err = s.run(ctx, program{
		name: "postgres", path: filepath.Join(programs, "postgres"), dir: dir, account: account,
		args: []string{
			"-D", filepath.Join(dir, "data"), "-p", port,
			"-c", "listen_addresses=" + host, "-c", "unix_socket_directories=",
			// The default is for machines of the last century.
			"-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB",
		},
		// At SIGTERM it would wait for its clients, and nothing that it stores is kept.
		stop:  syscall.SIGQUIT,
		ready: answersSQL(u.String()),
	})
	return u.String(), err
}

// makeDatabase makes the files of an empty database below dir.
func makeDatabase(ctx context.Context, programs, dir, password string, account *syscall.Credential) error {
	// Not MkdirAll: one that somebody else has made is an error.
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making a directory for PostgreSQL: %w", err)
	}
	secret := filepath.Join(dir, "password")
	if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the password of PostgreSQL: %w", err)
	}
	if account != nil {
		for _, path := range []string{dir, secret} {
			if err := os.Lchown(path, int(account.Uid), int(account.Gid)); err != nil {
				return fmt.Errorf("giving %s to the user of PostgreSQL: %w", path, err)
			}
		}
	}
	initdb := exec.CommandContext(ctx, filepath.Join(programs, "initdb"), "--pgdata", filepath.Join(dir, "data"),
		"--username", "batchtask", "--pwfile", secret, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C")
	initdb.Dir, initdb.SysProcAttr = dir, childAttributes()
	initdb.SysProcAttr.Credential = account
	if output, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("running initdb: %w: %s", err, output)
	}
	return nil
}

// answersSQL opens and closes a connection.
func answersSQL(databaseURL string) func(context.Context) error {
	return func(ctx context.Context) error {
		return withConn(ctx, databaseURL, func(context.Context, *pgx.Conn) error { return nil })
	}
}
