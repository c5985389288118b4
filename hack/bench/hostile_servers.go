package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
)

// Databases as hostile tenants have them.

// hugeMessage is what a server may claim that its message has, and sends.
const hugeMessage = 900 << 20

// startSilent runs a server that takes connections and never says a word.
func startSilent(ctx context.Context) (string, error) {
	return serveTCP(ctx, func(_ context.Context, conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
}

// startHuge runs a server of PostgreSQL's protocol that lets everybody in, and answers the
// first statement with one message of hugeMessage bytes.
func startHuge(ctx context.Context) (string, error) {
	return serveTCP(ctx, func(_ context.Context, conn net.Conn) {
		var length [4]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		size := int64(binary.BigEndian.Uint32(length[:])) - 4 // of the start-up message: sslmode=disable
		if _, err := io.CopyN(io.Discard, conn, size); err != nil {
			return
		}
		hello := []byte{'R', 0, 0, 0, 8, 0, 0, 0, 0} // AuthenticationOk
		hello = append(hello, parameter("server_version", "17.0")...)
		hello = append(hello, parameter("client_encoding", "UTF8")...)
		hello = append(hello, parameter("standard_conforming_strings", "on")...)
		hello = append(hello, 'Z', 0, 0, 0, 5, 'I') // ReadyForQuery
		if _, err := conn.Write(hello); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, length[:1]); err != nil { // of a statement
			return
		}
		row := binary.BigEndian.AppendUint32([]byte{'D'}, hugeMessage)
		if _, err := conn.Write(row); err != nil {
			return
		}
		chunk := make([]byte, 1<<20)
		for range hugeMessage / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	})
}

// parameter is a ParameterStatus message.
func parameter(name, value string) []byte {
	body := name + "\x00" + value + "\x00"
	return append(binary.BigEndian.AppendUint32([]byte{'S'}, uint32(len(body)+4)), body...)
}

// gate stands before a database. Closed, it does what one does that is stopped with
// SIGSTOP: it keeps its connections, takes new ones, and says nothing.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while the gate is open
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

// pass waits until the gate is open.
func (g *gate) pass(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start listens until ctx ends, and returns the URL by which the database is reached
// through the gate.
func (g *gate) start(ctx context.Context, databaseURL string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return "", err
	}
	server := u.Host
	u.Host, err = serveTCP(ctx, func(ctx context.Context, client net.Conn) {
		if g.pass(ctx) != nil {
			return
		}
		var dialer net.Dialer
		database, err := dialer.DialContext(ctx, "tcp", server)
		if err != nil {
			return
		}
		defer database.Close()
		go func() {
			g.copy(ctx, client, database)
			_ = client.Close()
		}()
		g.copy(ctx, database, client)
	})
	if err != nil {
		return "", fmt.Errorf("start the gate before a database: %w", err)
	}
	return u.String(), nil
}

func (g *gate) copy(ctx context.Context, to io.Writer, from io.Reader) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if g.pass(ctx) != nil {
			return
		}
		if _, failed := to.Write(buffer[:n]); failed != nil || err != nil {
			return
		}
	}
}
