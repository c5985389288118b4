//go:build !linux

package localenv

import "syscall"

// childAttributes give a child a process group of its own, so that Ctrl-C
// reaches this process alone and the children are ended in order.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// bindToParent is of use on Linux only.
func bindToParent(program, _ string) (string, error) { return program, nil }

// BecomeChild does something on Linux only.
func BecomeChild() {}
