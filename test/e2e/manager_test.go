// Package e2e runs the manager as it is shipped, the program itself, against a
// real API server and a real broker, kills one or the other, and counts.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"batchtask.dev/operator/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// program builds batchtask once for all tests of the package.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "batchtask-e2e-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "batchtask")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "batchtask.dev/operator/cmd/batchtask")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build batchtask: %w\n%s", err, out)
	}
	return path, nil
})

// process is a running subcommand.
type process struct {
	cmd    *exec.Cmd
	output *lockedBuffer
	ended  chan struct{}
}

// startManager starts a manager without webhooks, with the rights that are shipped and no
// others, and waits until it is ready.
func startManager(t *testing.T, brokerURL string, flags ...string) *process {
	t.Helper()
	m := startManagerAs(t, asShipped(t, "batchtask-manager"), brokerURL, append([]string{"--webhooks=false"}, flags...)...)
	t.Cleanup(func() { m.wantNothingForbidden(t) })
	return m
}

// startManagerAs starts a manager that reaches the API server by this kubeconfig.
func startManagerAs(t *testing.T, kubeConfig []byte, brokerURL string, flags ...string) *process {
	t.Helper()
	return start(t, kubeConfig, append([]string{"manager", "--mqtt-url=" + brokerURL}, flags...)...)
}

// start starts a subcommand that reaches the API server by this kubeconfig, and
// waits until it is ready.
func start(t *testing.T, kubeConfig []byte, args ...string) *process {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, kubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	probe := freeAddress(t)
	m := &process{output: &lockedBuffer{}, ended: make(chan struct{})}
	m.cmd = exec.Command(path, append(args, "--metrics-bind-address=0", "--health-probe-bind-address="+probe, "--database-networks=loopback")...)
	m.cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	if err := m.cmd.Start(); err != nil {
		t.Fatalf("start the %s: %v", args[0], err)
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.ended)
	}()
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("end of the log of the %s:\n%s", args[0], m.output.tail(6000))
		}
	})
	eventually(t, "the "+args[0]+" to be ready", func() (bool, string) {
		select {
		case <-m.ended:
			t.Fatalf("the %s ended:\n%s", args[0], m.output.tail(6000))
		default:
		}
		return answers(t.Context(), "http://"+probe+"/readyz"), ""
	})
	return m
}

// kill ends the process with SIGKILL.
func (m *process) kill() {
	_ = m.cmd.Process.Kill()
	<-m.ended
}

// stop ends the process with SIGTERM, as Kubernetes does.
func (m *process) stop(t *testing.T) {
	t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stop: %v", err)
	}
	select {
	case <-m.ended:
	case <-time.After(patience):
		t.Fatal("the process does not end after SIGTERM")
	}
}

func answers(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer http.DefaultClient.CloseIdleConnections()
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// freeAddress returns an address to listen on. Its port is none of those that the kernel
// gives to whoever wants any: nobody gets it before the program listens, or while it is
// started again.
func freeAddress(t *testing.T) string {
	t.Helper()
	const from, to, tries = 20_000, 32_768, 1000
	var lc net.ListenConfig
	var err error
	for range tries {
		var l net.Listener
		if l, err = lc.Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", from+rand.IntN(to-from))); err == nil {
			_ = l.Close()
			return l.Addr().String()
		}
	}
	t.Fatalf("no port is free: %v", err)
	return ""
}

// patience is how long a test waits for what must come. One that passes does not pay
// for it, and a machine may be busy.
const patience = 5 * time.Minute

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() (bool, string)) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for {
		ok, state := holds()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited %s for %s: %s", patience, what, state)
		}
	}
}

// lockedBuffer keeps what a program writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) contains(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.buf.Bytes(), []byte(text))
}

func (b *lockedBuffer) tail(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := b.buf.Bytes()
	return string(text[max(0, len(text)-n):])
}

func splitAddress(t *testing.T, address string) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}
