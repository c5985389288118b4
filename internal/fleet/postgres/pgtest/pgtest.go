// Package pgtest runs a PostgreSQL server of a test's own, which can be killed and
// started again. It is for tests only.
package pgtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"batchtask.dev/operator/internal/pginstall"
)

const (
	// startTimeout bounds the wait for the server to answer.
	startTimeout = 2 * time.Minute
	// User is the superuser of the server.
	User = "batchtask"
	// Password is that of User. Connections over TCP need it, so that tests notice where it
	// is lost, or shown.
	Password = "correct-horse-battery"
)

// Server is a running PostgreSQL server on a free port of 127.0.0.1. Its default
// order of text is that of a language and not that of bytes, as installations have.
type Server struct {
	t        testing.TB
	programs string
	dir      string
	port     int // 0 until the server has started for the first time
	settings []string
	account  *syscall.Credential // nil for the user that the test runs as

	mu      sync.Mutex
	process *exec.Cmd
	ended   chan struct{} // closed when process has ended
	made    int
}

// Option changes a Server.
type Option func(*Server)

// WithSetting sets a parameter of postgresql.conf.
func WithSetting(name, value string) Option {
	return func(s *Server) { s.settings = append(s.settings, "-c", name+"="+value) }
}

// WithSync makes the server wait for the disk at each commit, as servers do that
// hold data anybody wants back after the power failed. The tests kill processes and
// not machines, which loses nothing that was written.
func WithSync() Option { return WithSetting("fsync", "on") }

// Start runs a server until the test ends. Where PostgreSQL is not installed the
// test is skipped, or fails when the environment says CI=true.
func Start(t testing.TB, options ...Option) *Server {
	t.Helper()
	account, err := pginstall.Account()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, programs: programs(t), account: account}
	s.settings = []string{"-c", "fsync=off"}
	for _, option := range options {
		option(s)
	}
	// Not t.TempDir, which only the user of the test may enter.
	dir, err := os.MkdirTemp("", "pgtest-") //nolint:usetesting // see above
	if err != nil {
		t.Fatalf("making a folder for PostgreSQL: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s.dir = dir
	if s.account != nil {
		if err := os.Chown(dir, int(s.account.Uid), int(s.account.Gid)); err != nil {
			t.Fatalf("giving the folder of PostgreSQL to its user: %v", err)
		}
	}
	s.initialise()
	s.Restart()
	t.Cleanup(s.stop)
	return s
}

// initialise makes the files of an empty database cluster.
func (s *Server) initialise() {
	s.t.Helper()
	secret := filepath.Join(s.dir, "password")
	if err := os.WriteFile(secret, []byte(Password+"\n"), 0o644); err != nil {
		s.t.Fatalf("writing the password of PostgreSQL: %v", err)
	}
	cmd := s.command("initdb", "--pgdata", s.data(), "--username", User, "--pwfile", secret,
		"--auth-local", "trust", "--auth-host", "scram-sha-256", "--no-sync", "--no-instructions",
		"--encoding", "UTF8", "--locale", "C", "--locale-provider", "icu", "--icu-locale", "en")
	if output, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("running initdb: %v\n%s", err, output)
	}
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// command returns a program of PostgreSQL, to be run as the server's user.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	// Not bound to the test's context: Kill is what ends it, also in cleanup functions.
	cmd := exec.CommandContext(context.WithoutCancel(s.t.Context()), filepath.Join(s.programs, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account}
	return cmd
}

// URL returns the URL of the database "postgres", with user and password.
func (s *Server) URL() string { return s.url("postgres", s.Address()).String() }

// Address returns where the server listens: host and port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URLVia returns url with another address: that of a proxy in front of the server.
func URLVia(t testing.TB, databaseURL, address string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatalf("reading the URL of a database: %v", err)
	}
	u.Host = address
	return u.String()
}

func (s *Server) url(database, address string) *url.URL {
	return &url.URL{
		Scheme: "postgres", User: url.UserPassword(User, Password), Host: address, Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
}

// Database makes an empty database and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	s.mu.Lock()
	s.made++
	name := fmt.Sprint("test_", s.made)
	s.mu.Unlock()
	s.Exec(t, "CREATE DATABASE "+name)
	return s.url(name, s.Address()).String()
}

// Exec runs a statement in the database "postgres".
func (s *Server) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		t.Fatalf("connecting to PostgreSQL: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		t.Fatalf("running %.80s: %v", sql, err)
	}
}

// Connect returns a connection, past any pool, that is closed when the test ends.
func Connect(t testing.TB, databaseURL string) *pgx.Conn {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		t.Fatalf("connecting to PostgreSQL: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	return conn
}

// Kill ends the server and all its processes with SIGKILL, as a machine does that
// runs out of memory. It does nothing when it does not run.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return
	}
	freeze(s.process.Process) // else it may make one that is missed here, and lives on
	// The server first: it would answer the end of another process with a recovery.
	backends := children(s.process.Process.Pid)
	_ = s.process.Process.Kill()
	for _, pid := range backends {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	s.reap()
}

// stop ends the server without waiting for its clients.
func (s *Server) stop() {
	s.Resume()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		_ = s.process.Process.Signal(syscall.SIGQUIT)
		s.reap()
	}
}

func (s *Server) reap() {
	<-s.ended
	s.process = nil
}

// Restart starts the server on the same port with the same data, killing it first
// if it runs, and waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline := time.Now().Add(startTimeout)
	first := s.port == 0
	var trouble error
	for time.Now().Before(deadline) {
		// Somebody else may take a free port before the server does. Until it has started
		// nobody knows which it has, so it can have another.
		if first {
			s.port = freePort(s.t)
		}
		// A server does not start while processes of one that was killed still end.
		if trouble = s.launch(deadline); trouble == nil {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	log, _ := os.ReadFile(s.logFile())
	s.t.Fatalf("PostgreSQL does not answer after %v: %v\n%s", startTimeout, trouble, log)
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "log") }

func (s *Server) launch(deadline time.Time) error {
	args := append([]string{
		"-D", s.data(), "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + s.dir,
		"-c", "max_connections=50", "-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB",
	}, s.settings...)
	output, err := os.Create(s.logFile())
	if err != nil {
		return err
	}
	defer func() { _ = output.Close() }()
	process := s.command("postgres", args...)
	process.Stdout, process.Stderr = output, output
	if err := process.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = process.Wait()
		close(ended)
	}()
	s.process, s.ended = process, ended
	var trouble error
	for time.Now().Before(deadline) {
		if trouble = s.ping(); trouble == nil {
			return nil
		}
		select {
		case <-ended:
			s.process = nil
			return fmt.Errorf("it ended at once: %v", process.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return trouble
}

// ping asks over the socket in the folder of the server: another one may have its port.
// It listens on the port before it makes the socket.
func (s *Server) ping() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 10*time.Second)
	defer cancel()
	own := url.URL{Scheme: "postgres", User: url.User(User), Path: "/postgres", RawQuery: url.Values{
		"host": {s.dir}, "port": {strconv.Itoa(s.port)}, "sslmode": {"disable"},
	}.Encode()}
	conn, err := pgx.Connect(ctx, own.String())
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// freeze stops a process, and returns when it has stopped or ended.
func freeze(process *os.Process) {
	if process.Signal(syscall.SIGSTOP) != nil {
		return
	}
	for {
		if fields := stat(process.Pid); len(fields) == 0 || strings.ContainsAny(fields[0], "TtZX") {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// children returns the ids of the processes that a process has started.
func children(pid int) []int {
	var ids []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for field := range strings.FieldsSeq(string(text)) {
			if id, err := strconv.Atoi(field); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// programs returns the folder of PostgreSQL's programs.
func programs(t testing.TB) string {
	t.Helper()
	folder, err := pginstall.Programs()
	if err == nil {
		return folder
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(err)
	}
	t.Skip(err)
	return ""
}

func freePort(t testing.TB) int {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("looking for a free port: %v", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// CPU returns the processor time that the server and all its processes have used,
// those that have ended included. It is exact to some hundredths of a second.
func (s *Server) CPU(t testing.TB) time.Duration {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		t.Fatal("PostgreSQL does not run")
	}
	pid := s.process.Process.Pid
	ticks := ticksOf(pid, 4)
	for _, child := range children(pid) {
		ticks += ticksOf(child, 2)
	}
	const perSecond = 100 // USER_HZ, on all that Go runs on
	return time.Duration(ticks) * time.Second / perSecond
}

// ticksOf adds up the first of the four times in /proc/pid/stat: in user and in system
// mode, and the same of children that were waited for.
func ticksOf(pid, times int) (ticks int64) {
	const firstTime = 11
	fields := stat(pid)
	for i := firstTime; i < firstTime+times && i < len(fields); i++ {
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		ticks += n
	}
	return ticks
}

// stat returns the fields of /proc/pid/stat from the third on, which is the state; nil
// where there is no such file.
func stat(pid int) []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name of the program, in parentheses, may have spaces.
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.Fields(rest)
}
