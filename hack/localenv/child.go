package localenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// childReady is how long a program may take until it is ready.
	childReady = 2 * time.Minute
	// childStop is how long it may take to end before it is killed.
	childStop = 15 * time.Second
	// pollInterval is how often to ask whether it is ready.
	pollInterval = 50 * time.Millisecond
)

// EndedError says that a program ended by itself while it was needed.
type EndedError struct {
	// Name is the program's name, Log the path of its log.
	Name, Log string
	// Err is how it ended.
	Err error
}

// Error implements error, with the end of the log.
func (e *EndedError) Error() string {
	return fmt.Sprintf("%s ended unexpectedly (%v); the end of %s: %s", e.Name, e.Err, relative(e.Log), tail(e.Log))
}

// Unwrap returns Err.
func (e *EndedError) Unwrap() error { return e.Err }

// program is something to run beside this process: the manager, the shadow
// service, the shim, a broker, a database.
type program struct {
	name string // for messages, and for the log: name.log
	path string
	args []string
	env  []string // added to the environment
	dir  string   // to run in; empty for that of this process
	// account is whom it runs as; nil for the user of this process.
	account *syscall.Credential
	// stop asks it to end; 0 is SIGTERM.
	stop syscall.Signal
	// ready asks once; nil is yes.
	ready func(context.Context) error
}

// run starts p and waits until it is ready. It ends with the session, and the
// session's context ends with it.
func (s *session) run(ctx context.Context, p program) error {
	logPath := s.path(p.name + ".log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", p.name, err)
	}
	defer func() { _ = log.Close() }() // The program has it open itself.
	// Not CommandContext: it kills, and the manager shall write its checkpoints.
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir, cmd.SysProcAttr = p.dir, childAttributes()
	cmd.SysProcAttr.Credential = p.account
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	ended, stopping := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		err := cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		select {
		case <-stopping:
		default:
			s.end(&EndedError{Name: p.name, Log: logPath, Err: err})
		}
	}()
	s.onStop(func() error {
		close(stopping)
		return stopChild(cmd, cmp.Or(p.stop, syscall.SIGTERM), ended)
	})

	wait, cancel := context.WithTimeout(ctx, childReady)
	defer cancel()
	err = poll(wait, p.ready)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s did not become ready in %.0f s (%w); the end of %s: %s", p.name, childReady.Seconds(), err, relative(logPath), tail(logPath))
}

func stopChild(cmd *exec.Cmd, stop syscall.Signal, ended <-chan struct{}) error {
	// Wait has not returned, so the process ID is still this child's; where it
	// has, os.Process knows.
	_ = cmd.Process.Signal(stop)
	timer := time.NewTimer(childStop)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		_ = cmd.Process.Kill()
		<-ended
	}
	return nil
}

// poll asks until the answer is nil, and returns the last answer when ctx ends.
func poll(ctx context.Context, ask func(context.Context) error) error {
	if ask == nil {
		return nil
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	last := errors.New("no answer")
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return last
		}
		last = err
		select {
		case <-ctx.Done():
			return last
		case <-ticker.C:
		}
	}
}

// answersOK asks url over HTTP.
func answersOK(url string) func(context.Context) error { return answersWith(url, "") }

// answersWith asks url over HTTP for a text that has this line, or any if it is
// empty.
func answersWith(url, line string) func(context.Context) error {
	// One connection a question: none stays behind.
	caller := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		response, err := caller.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, response.Status)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return err
		}
		if line != "" && !slices.Contains(strings.Split(string(body), "\n"), line) {
			return fmt.Errorf("%s does not say %q", url, line)
		}
		return nil
	}
}

// accepts opens and closes a connection.
func accepts(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		dialer := net.Dialer{Timeout: 5 * time.Second}
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// tail returns the last lines of a log as one line.
func tail(path string) string {
	const lines, most = 3, 1000
	content, err := os.ReadFile(path)
	text := strings.TrimSpace(string(content))
	switch {
	case err != nil:
		return err.Error()
	case text == "":
		return "(empty)"
	}
	all := strings.Split(text, "\n")
	text = strings.Join(all[max(0, len(all)-lines):], " | ")
	return strings.ToValidUTF8(text[max(0, len(text)-most):], "")
}

// raiseFileLimit allows as many open files as this user may have, for children
// too: a thousand devices are a thousand connections here and at the broker. Go
// does it for this process, but hands the old limit on.
func raiseFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}
