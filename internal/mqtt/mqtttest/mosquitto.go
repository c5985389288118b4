// Package mqtttest holds brokers for tests: a real mosquitto that can be killed and restarted, and a fake that exists
// only to inject faults no real broker shows on demand.
package mqtttest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// startTimeout bounds the wait for mosquitto to listen.
const startTimeout = time.Minute

// Mosquitto is a running mosquitto of the test's own, on a free port of 127.0.0.1, which keeps nothing when it is killed
// unless it is told to.
type Mosquitto struct {
	t       testing.TB
	program string
	config  string
	port    int
	scheme  string

	mu      sync.Mutex
	process *exec.Cmd
}

// MosquittoOption changes the configuration of StartMosquitto.
type MosquittoOption func(*mosquittoConfig)

type mosquittoConfig struct {
	lines      []string
	scheme     string
	anonymous  bool
	persistent bool
	ports      []int  // of further listeners
	whole      string // the whole file, instead of all else
}

// WithConfigFile makes it run with this mosquitto.conf and nothing else, which listens on these ports of 127.0.0.1, of
// [FreePort]; the first is that of the URL.
func WithConfigFile(config string, ports ...int) MosquittoOption {
	return func(c *mosquittoConfig) { c.whole, c.ports = config, ports }
}

// FreePort returns a port of 127.0.0.1 that no other process is given by chance until the test ends.
func FreePort(t testing.TB) int {
	t.Helper()
	return reservePort(t)
}

// WithPersistence makes it write sessions and their messages to a file: each second, so that what came in the last
// second is lost when it is killed.
func WithPersistence() MosquittoOption {
	return func(c *mosquittoConfig) { c.persistent = true }
}

// WithConfig adds lines to mosquitto.conf.
func WithConfig(lines ...string) MosquittoOption {
	return func(c *mosquittoConfig) { c.lines = append(c.lines, lines...) }
}

// WithTLS makes it listen with TLS, with the certificate and key in these PEM files.
func WithTLS(certFile, keyFile string) MosquittoOption {
	return func(c *mosquittoConfig) {
		c.scheme = "ssl"
		c.lines = append(c.lines, "certfile "+certFile, "keyfile "+keyFile)
	}
}

// WithPasswordFile lets in only the users of a file made by mosquitto_passwd.
func WithPasswordFile(path string) MosquittoOption {
	return func(c *mosquittoConfig) {
		c.anonymous = false
		c.lines = append(c.lines, "password_file "+path)
	}
}

// StartMosquitto runs mosquitto until the test ends. Where it is not installed the test is skipped, or fails when the
// environment says CI=true.
func StartMosquitto(t testing.TB, opts ...MosquittoOption) *Mosquitto {
	t.Helper()
	program := findMosquitto(t)
	c := mosquittoConfig{scheme: "tcp", anonymous: true}
	for _, o := range opts {
		o(&c)
	}
	m := &Mosquitto{t: t, program: program, port: reservePort(t), scheme: c.scheme, config: filepath.Join(t.TempDir(), "mosquitto.conf")}
	lines := append([]string{
		fmt.Sprintf("listener %d 127.0.0.1", m.port),
		fmt.Sprintf("allow_anonymous %t", c.anonymous),
		fmt.Sprintf("persistence %t", c.persistent),
		// A subscriber of the test must get every message, however slow.
		"max_queued_messages 0",
		"max_inflight_messages 0",
		"set_tcp_nodelay true",
		"log_type none",
		// Started as root, it would change to a user that cannot read the test's files. Otherwise this has no effect.
		"user root",
	}, c.lines...)
	if c.persistent {
		lines = append(lines, "persistence_location "+t.TempDir()+"/", "autosave_interval 1")
	}
	content := strings.Join(lines, "\n") + "\n"
	if c.whole != "" {
		content, m.port = c.whole, c.ports[0]
	}
	if err := os.WriteFile(m.config, []byte(content), 0o600); err != nil {
		t.Fatalf("writing mosquitto.conf: %v", err)
	}
	m.Restart()
	t.Cleanup(m.Kill)
	return m
}

func findMosquitto(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const message = "mosquitto is not installed (Debian package mosquitto), this test needs it"
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
	return ""
}

// URL is the broker's URL, with the scheme that fits its listener.
func (m *Mosquitto) URL() string { return fmt.Sprintf("%s://127.0.0.1:%d", m.scheme, m.port) }

// Kill ends mosquitto with SIGKILL and waits for its end. It does nothing when it does not run.
func (m *Mosquitto) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil {
		return
	}
	_ = m.process.Process.Kill()
	_ = m.process.Wait()
	m.process = nil
}

// Restart starts mosquitto on the same port, killing it first if it runs, and waits until it listens.
func (m *Mosquitto) Restart() {
	m.t.Helper()
	m.Kill()
	m.mu.Lock()
	defer m.mu.Unlock()
	// Not bound to the test's context: Kill is what ends it, also in cleanup functions.
	cmd := exec.CommandContext(context.WithoutCancel(m.t.Context()), m.program, "-c", m.config)
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("starting %s: %v", m.program, err)
	}
	m.process = cmd
	address := fmt.Sprintf("127.0.0.1:%d", m.port)
	deadline := time.Now().Add(startTimeout)
	for {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			m.process = nil
			m.t.Fatalf("mosquitto does not listen on %s after %v: %v\n%s", address, startTimeout, err, output.String())
		}
		<-time.After(10 * time.Millisecond)
	}
}
