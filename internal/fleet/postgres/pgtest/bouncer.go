package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Bouncer is a running PgBouncer before a Server.
type Bouncer struct {
	address string
}

// StartBouncer runs PgBouncer before a server until the test ends, as it comes but for
// pool_mode (session, transaction or statement) and the other settings, such as
// "default_pool_size=1". Where it is not installed the test is skipped, or fails when the
// environment says CI=true.
func StartBouncer(t testing.TB, s *Server, mode string, settings ...string) *Bouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/pgbouncer")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	port := freePort(t)
	dir, err := os.MkdirTemp(s.dir, "bouncer-") //nolint:usetesting // another user must reach it
	if err != nil {
		t.Fatalf("making a folder for PgBouncer: %v", err)
	}
	config := append([]string{
		"[databases]", fmt.Sprintf("* = host=127.0.0.1 port=%d", s.port),
		"[pgbouncer]", "listen_addr=127.0.0.1", fmt.Sprintf("listen_port=%d", port), "unix_socket_dir=",
		"auth_type=scram-sha-256", "auth_file=" + filepath.Join(dir, "users"), "pool_mode=" + mode,
	}, settings...)
	for name, text := range map[string]string{
		"config": strings.Join(config, "\n") + "\n", "users": fmt.Sprintf("%q %q\n", User, Password),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatalf("writing the settings of PgBouncer: %v", err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, filepath.Join(dir, "config"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting PgBouncer: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		<-ended
	})
	b := &Bouncer{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	deadline := time.Now().Add(startTimeout)
	for trouble := errors.New("it was not asked"); trouble != nil; {
		conn, err := net.Dial("tcp", b.address)
		if trouble = err; err == nil {
			_ = conn.Close()
			break
		}
		select {
		case <-ended:
			trouble = fmt.Errorf("it ended at once: %v", cmd.ProcessState)
			deadline = time.Time{}
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Fatalf("PgBouncer does not answer: %v\n%s", trouble, log)
		}
	}
	return b
}

// Address returns where it listens: host and port.
func (b *Bouncer) Address() string { return b.address }
