package pgtest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Proxy stands between a client and a server and loses answers: where cut says so it
// drops the connection when a statement is done, and committed if it stands alone, and
// the client has not been told.
type Proxy struct {
	listener net.Listener
	server   string
	cut      func(tag string) bool
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	ended bool
}

// StartProxy runs a proxy in front of a server until the test ends. cut is asked with
// the tag of each statement that the server has completed: "UPDATE 12", "COMMIT". It
// is called by several goroutines. Clients must not use TLS.
func StartProxy(t testing.TB, server string, cut func(tag string) bool) *Proxy {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listening: %v", err)
	}
	p := &Proxy{listener: l, server: server, cut: cut, conns: map[net.Conn]bool{}}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Address returns where the proxy listens: host and port.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.ended = true
	for conn := range p.conns {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		end := p.pair(client, server)
		p.running.Go(func() {
			defer end()
			_, _ = io.Copy(server, client)
		})
		p.running.Go(func() {
			defer end()
			_ = p.answers(client, server)
		})
	}
}

// pair notes both ends of a connection and returns what closes them.
func (p *Proxy) pair(conns ...net.Conn) (end func()) {
	end = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, conn := range conns {
			_ = conn.Close()
			delete(p.conns, conn)
		}
	}
	p.mu.Lock()
	for _, conn := range conns {
		p.conns[conn] = true
	}
	ended := p.ended
	p.mu.Unlock()
	if ended {
		end()
	}
	return end
}

var errCut = errors.New("the connection is cut")

// answers hands on what the server sends, message by message (PostgreSQL, frontend/backend
// protocol: a byte that names the kind, and the length of the rest, itself included).
func (p *Proxy) answers(client io.Writer, server io.Reader) error {
	doomed := false
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, header); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return err
		}
		const commandComplete, readyForQuery = 'C', 'Z'
		if header[0] == commandComplete && p.cut(strings.TrimSuffix(string(body), "\x00")) {
			doomed = true
		}
		switch {
		case doomed && header[0] == readyForQuery: // sent behind the commit
			return errCut
		case doomed:
			continue
		}
		if _, err := client.Write(append(header[:5:5], body...)); err != nil {
			return err
		}
	}
}
