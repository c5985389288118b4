package mqtttest

import (
	"syscall"
	"testing"
)

// reservePort returns a port of 127.0.0.1 that no other process is given by chance until the test ends, though mosquitto
// is killed and restarted: a socket is bound to it that never listens. Where both say SO_REUSEADDR, as mosquitto does,
// Linux lets another bind to the same port on purpose; it gives nobody such a port who asks for any.
func reservePort(t testing.TB) int {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("reserving a port: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Close(socket) })
	err = syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		t.Fatalf("reserving a port: %v", err)
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatalf("reserving a port: %v", err)
	}
	return address.(*syscall.SockaddrInet4).Port
}
