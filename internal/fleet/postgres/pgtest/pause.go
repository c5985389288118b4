package pgtest

import "syscall"

// Pause stops the server and all its processes with SIGSTOP: it keeps its connections, takes
// new ones, and says nothing, until Resume. Kill, Restart and the end of the test work all
// the same.
func (s *Server) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return
	}
	freeze(s.process.Process) // else it may make one that is missed here
	for _, pid := range children(s.process.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
}

// Resume lets a server go on after Pause.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return
	}
	for _, pid := range children(s.process.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	_ = s.process.Process.Signal(syscall.SIGCONT)
}
