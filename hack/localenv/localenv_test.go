package localenv

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWriteExports(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	want := []string{"plain", `it's "quoted" $HOME \ and` + "\nin two lines", "", "/first:/usr/bin:/bin"}
	if err := WriteExports(file, []Export{
		{Name: "A", Value: want[0]},
		{Name: "B", Value: want[1]},
		{Name: "C", Value: ""},
		{Name: "PATH", Value: "/first", Prepend: true},
	}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600: it may hold a password", info.Mode().Perm())
	}
	// What a child of the shell gets, so that export is seen too.
	shell := exec.CommandContext(t.Context(), "/bin/sh", "-c", `. "$0" && exec /bin/sh -c 'printf "%s\001%s\001%s\001%s" "$A" "$B" "$C" "$PATH"'`, file)
	shell.Env = []string{"PATH=/usr/bin:/bin", "C=old"}
	got, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if diff := cmp.Diff(want, strings.Split(string(got), "\x01")); diff != "" {
		t.Errorf("as a shell reads it (-want +got):\n%s", diff)
	}
}

// Who waits for the file must never read a part of it.
func TestWriteFileIsAtomic(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	a, b := strings.Repeat("a", 1<<20), strings.Repeat("b", 1<<20)
	if err := writeFile(file, []byte(a)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() {
		for ctx.Err() == nil {
			got, err := os.ReadFile(file)
			if err != nil || string(got) != a && string(got) != b {
				t.Errorf("read %d bytes, error %v: neither the old content nor the new", len(got), err)
				return
			}
		}
	})
	for i := range 50 {
		content := a
		if i%2 == 0 {
			content = b
		}
		if err := writeFile(file, []byte(content)); err != nil {
			t.Error(err)
		}
	}
	stop()
	reading.Wait()
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	var running *RunningError
	if _, err := lock(dir); !errors.As(err, &running) || running.PID == "" {
		t.Errorf("a second lock: error %v, want a RunningError with a process", err)
	}
	unlock()
	again, err := lock(dir)
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	again()
}

func TestUseBroker(t *testing.T) {
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	address := listener.Addr().String()
	for _, test := range []struct{ name, url, wantURL, wantText, wantErr string }{
		{"reached", "tcp://" + address, "tcp://" + address, "tcp://" + address + ", from MQTT_URL", ""},
		{"password", "mqtt://u:secret@" + address, "mqtt://u:secret@" + address, "mqtt://u:xxxxx@" + address + ", from MQTT_URL", ""},
		{"no scheme", address, "", "", "is not a URL"},
		{"other scheme", "http://" + address, "", "", "must be a URL such as"},
		{"nobody there, default port", "tcp://127.0.0.2", "", "", "127.0.0.2:1883"},
	} {
		t.Run(test.name, func(t *testing.T) {
			gotURL, gotText, err := useBroker(t.Context(), test.url)
			if test.wantErr == "" && err != nil || test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
				t.Errorf("error %v, want %q", err, test.wantErr)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the password: %v", err)
			}
			if diff := cmp.Diff([]string{test.wantURL, test.wantText}, []string{gotURL, gotText}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestListener(t *testing.T) {
	var config net.ListenConfig
	taken, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	busy := taken.Addr().String()
	for _, test := range []struct{ name, wanted, usual, wantNote, wantErr string }{
		{"wanted and taken", busy, "127.0.0.1:0", "", "the thing cannot listen on " + busy},
		{"any port wanted", "127.0.0.1:0", busy, "", ""},
		{"the usual one", "", "127.0.0.1:0", "", ""},
		{"the usual one is taken", "", busy, ", as " + busy + " is taken (SETTING sets it)", ""},
		{"no address", "nonsense", busy, "", "the thing cannot listen on nonsense"},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, note, err := listener{name: "the thing", wanted: test.wanted, usual: test.usual, advice: "SETTING sets it"}.address(t.Context())
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) || !strings.HasSuffix(err.Error(), "(SETTING sets it)") {
					t.Errorf("error %v, want %q with advice", err, test.wantErr)
				}
				return
			}
			if _, port, _ := net.SplitHostPort(address); err != nil || port == "0" || port == "" || address == busy || note != test.wantNote {
				t.Errorf("got %q, note %q, error %v, want a free address and note %q", address, note, err, test.wantNote)
			}
		})
	}

	for address, want := range map[string]string{
		"127.0.0.1:1": "127.0.0.1:1", "0.0.0.0:1": "127.0.0.1:1", "[::]:1": "127.0.0.1:1", ":1": "127.0.0.1:1", "broker:1": "broker:1",
	} {
		if got := reachable(address); got != want {
			t.Errorf("reachable(%q) is %q, want %q", address, got, want)
		}
	}
}

// A program that ends while it is waited for, or later, is told of with the end
// of its log, on one line.
func TestProgramEnds(t *testing.T) {
	ctx, end := context.WithCancelCause(t.Context())
	s := &session{Options: Options{Dir: t.TempDir()}, end: end}
	err := s.run(ctx, program{
		name: "thing", path: "/bin/sh", args: []string{"-c", "echo one; echo two >&2; exit 3"},
		ready: func(context.Context) error { return errors.New("not yet") },
	})
	if stopErr := s.stop(); stopErr != nil {
		t.Error(stopErr)
	}
	var ended *EndedError
	if !errors.As(err, &ended) || !strings.Contains(err.Error(), "thing ended unexpectedly (exit status 3)") ||
		!strings.HasSuffix(err.Error(), "one | two") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}
