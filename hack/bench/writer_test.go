package main

import (
	"context"
	"io"
	"net"
	"testing"
)

// A broker that hangs up in the middle makes the limit fail, and not wait for ever.
func TestWriterWithoutBroker(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.CopyN(io.Discard, conn, 22) // CONNECT of a client with the ID writer-0
			_, _ = conn.Write([]byte{0x20, 2, 0, 0, 0x40, 2, 0, 1})
			go func() { _, _ = io.Copy(io.Discard, conn) }() // it takes all, and has acknowledged one
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	if rate, err := writeAll(context.Background(), "tcp://"+listener.Addr().String(), deviceNames(5000), 1); err == nil {
		t.Errorf("it is said to have been %f/s", rate)
	}
}
