package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// moduleRoot returns the nearest directory with a go.mod, upwards from the
// working directory, which for tests is the directory of their package.
func moduleRoot() (string, error) {
	directory, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("looking for the module: %w", err)
	}
	for {
		_, err := os.Stat(filepath.Join(directory, "go.mod"))
		if err == nil {
			return directory, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("looking for the module: %w", err)
		}
		parent := filepath.Dir(directory)
		if parent == directory {
			return "", errors.New("looking for the module: no go.mod in any parent directory")
		}
		directory = parent
	}
}

// assets returns the directory of etcd and kube-apiserver: override if it is set
// (KUBEBUILDER_ASSETS), else the one below bin/controlplane that was built last.
func assets(root, override string) (string, error) {
	if override != "" {
		return override, nil
	}
	parent := filepath.Join(root, "bin", "controlplane")
	entries, err := os.ReadDir(parent)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("looking for the control plane: %w", err)
	}
	var newest string
	var builtAt time.Time
	for _, entry := range entries {
		directory := filepath.Join(parent, entry.Name())
		built, ok := complete(directory)
		if ok && (newest == "" || built.After(builtAt)) {
			newest, builtAt = directory, built
		}
	}
	if newest == "" {
		return "", fmt.Errorf("there is no control plane in %s: run `make controlplane`, or set KUBEBUILDER_ASSETS", parent)
	}
	return newest, nil
}

// complete reports whether directory holds all that a control plane needs, and
// when the last of it was built.
func complete(directory string) (built time.Time, ok bool) {
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		info, err := os.Stat(filepath.Join(directory, name))
		if err != nil || !info.Mode().IsRegular() {
			return time.Time{}, false
		}
		if info.ModTime().After(built) {
			built = info.ModTime()
		}
	}
	return built, true
}
