// Package pginstall finds the PostgreSQL that is installed on this machine, for who
// runs a server of its own: tests and local environments.
package pginstall

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Oldest is the first version of PostgreSQL that the project supports.
const Oldest = 15

// Programs returns the directory of PostgreSQL's programs: the newest of those that
// Debian keeps out of the search path, each version in a directory of its own, else
// the one that the search path has.
func Programs() (string, error) {
	best, newest := "", Oldest-1
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", fmt.Errorf("looking for PostgreSQL: %w", err)
	}
	for _, initdb := range found {
		directory := filepath.Dir(initdb)
		if version, err := strconv.Atoi(filepath.Base(filepath.Dir(directory))); err == nil && version > newest {
			best, newest = directory, version
		}
	}
	if best != "" {
		return best, nil
	}
	// What the path has may be a link to where the rest is.
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if initdb, err = filepath.EvalSymlinks(initdb); err == nil {
			return filepath.Dir(initdb), nil
		}
	}
	return "", fmt.Errorf("PostgreSQL %d or later is not installed (apt-get install postgresql)", Oldest)
}

// Account returns whom PostgreSQL runs as: nil for the user that this process runs as,
// unless that is root, whom PostgreSQL refuses.
func Account() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil //nolint:nilnil // as os/exec has it
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("the user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody")
}
