package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// resident is the processes of the operator, by their commands: manager, shadow, shim.
type resident map[string]int

// findResident looks among the processes that this one has started. It works on Linux
// alone.
func findResident(program string, commands ...string) (resident, error) {
	found := resident{}
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for id := range strings.FieldsSeq(string(text)) {
			line, _ := os.ReadFile("/proc/" + id + "/cmdline")
			args := strings.Split(string(line), "\x00")
			if len(args) < 2 || args[0] != program {
				continue
			}
			for _, command := range commands {
				if args[1] == command {
					found[command], _ = strconv.Atoi(id)
				}
			}
		}
	}
	if len(found) != len(commands) {
		return nil, fmt.Errorf("of the processes %s only %v are found", strings.Join(commands, ", "), found)
	}
	return found, nil
}

// forget lets the kernel count the peak memory from now on.
func (r resident) forget() error {
	var errs []error
	for _, pid := range r {
		errs = append(errs, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)) // proc(5)
	}
	return errors.Join(errs...)
}

// peak returns the most that a process has held since forget, in MiB.
func (r resident) peak(command string) reading {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r[command]))
	if err != nil {
		return reading{err: err}
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			return reading{value: kib / 1024, err: err}
		}
	}
	return reading{err: fmt.Errorf("the kernel does not tell the peak memory of %s", command)}
}

// alive counts the processes that are there.
func (r resident) alive() (n int) {
	for _, pid := range r {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(text) > 0 {
			n++
		}
	}
	return n
}
