package localenv

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// What a process that is started by the path of bindToParent needs to know.
const (
	boundProgram = "LOCALENV_PROGRAM_" // and its name: the path of the program
	boundParent  = "LOCALENV_PARENT"   // the process that it shall not outlive
)

// childAttributes give a child a process group of its own, so that Ctrl-C
// reaches this process alone and the children are ended in order, and have the
// kernel kill it when this process ends in whatever way.
//
// The kernel takes the end of the thread that started the child for the end of
// its parent. Go ends a thread only when a goroutine ends that is locked to it,
// and nothing here locks one.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// bindToParent returns a path that starts program so that it does not outlive
// this process, for libraries that start processes in a way of their own. It is a
// link to this program, which becomes the other one in BecomeChild.
func bindToParent(program, directory string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	name := filepath.Base(program)
	link := filepath.Join(directory, name)
	if err := os.Symlink(self, link); err != nil {
		return "", err
	}
	for key, value := range map[string]string{boundParent: strconv.Itoa(os.Getpid()), boundProgram + name: program} {
		if err := os.Setenv(key, value); err != nil {
			return "", err
		}
	}
	return link, nil
}

// BecomeChild returns at once, except in a process that Run has started to become
// etcd or kube-apiserver: there it becomes that.
func BecomeChild() {
	name := filepath.Base(os.Args[0])
	program, parent := os.Getenv(boundProgram+name), os.Getenv(boundParent)
	if program == "" || parent == "" {
		return
	}
	// The wish belongs to the thread, and stays with the program that it becomes.
	runtime.LockOSThread()
	err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	// The parent may have ended before the wish was known.
	if err == nil && strconv.Itoa(os.Getppid()) == parent {
		err = syscall.Exec(program, os.Args, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "starting %s: %v\n", program, err)
	os.Exit(1)
}
