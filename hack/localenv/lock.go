package localenv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// RunningError says that another process uses the directory.
type RunningError struct {
	// Dir is the directory.
	Dir string
	// PID is the other process, as text; empty if it is not known.
	PID string
}

// Error implements error.
func (e *RunningError) Error() string {
	return fmt.Sprintf("one is running already in %s (process %s)", relative(e.Dir), e.PID)
}

// lock takes dir for this process, until unlock or its end.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the local environment: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(file, 20))
		_ = file.Close()
		return nil, &RunningError{Dir: dir, PID: strings.TrimSpace(string(pid))}
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintln(file, os.Getpid())
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	// The file stays: who removed it could remove one that another has locked.
	return func() { _ = file.Close() }, nil
}
