package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// impostor is a server that is none. It answers each connection with what answer sends,
// behind a login where logIn is set and the first statement has come.
func impostor(t *testing.T, logIn bool, answer func(net.Conn)) (url string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	serve := func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		backend := pgproto3.NewBackend(conn, conn)
		if _, err := backend.ReceiveStartupMessage(); err != nil {
			return
		}
		if logIn {
			backend.Send(&pgproto3.AuthenticationOk{})
			backend.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if backend.Flush() != nil {
				return
			}
			for {
				message, err := backend.Receive()
				if err != nil {
					return
				}
				if _, last := message.(*pgproto3.Sync); last {
					break
				}
			}
		}
		answer(conn)
		// Until the other side has had enough.
		_, _ = conn.Read(make([]byte, 1))
	}
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
		}
	}()
	return "postgres://u:p@" + l.Addr().String() + "/x?sslmode=disable"
}

// header is how a message begins that is so long.
func header(kind byte, length uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, length+4)
}

// What a server sends is refused before anybody makes room for it.
func TestServerSendsTooMuch(t *testing.T) {
	const most = 32 << 20
	repeat := func(message []byte) func(net.Conn) {
		return func(conn net.Conn) {
			for {
				if _, err := conn.Write(message); err != nil {
					return
				}
			}
		}
	}
	status := (&pgproto3.ParameterStatus{Name: "n", Value: strings.Repeat("v", 10_000)})
	statusMessage, err := status.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	iterations, err := (&pgproto3.AuthenticationSASLContinue{Data: []byte("r=x,s=eA==,i=9999999")}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(message []byte) func(net.Conn) {
		return func(conn net.Conn) { _, _ = conn.Write(message) }
	}
	for name, tt := range map[string]struct {
		logIn  bool
		answer func(net.Conn)
		want   error
	}{
		"a row of 900 MiB":             {true, write(header('D', 900<<20)), errTooLarge},
		"a row just over the bound":    {true, write(header('D', maxRow+1)), errTooLarge},
		"an error of 900 MiB":          {true, write(header('E', 900<<20)), errTooLarge},
		"a notice of 2 MiB":            {true, write(header('N', 2<<20)), errTooLarge},
		"a description of 900 MiB":     {true, write(header('T', 900<<20)), errTooLarge},
		"a login of 900 MiB":           {false, write(header('R', 900<<20)), errTooLarge},
		"an error at login of 900 MiB": {false, write(header('E', 900<<20)), errTooLarge},
		"less than nothing":            {true, write([]byte{'D', 0xff, 0xff, 0xff, 0xff}), errTooLarge},
		"a length of 3":                {true, write([]byte{'D', 0, 0, 0, 3}), errProtocol},
		"no end of parameters":         {false, repeat(statusMessage), errTooLarge},
		"too many iterations":          {false, write(iterations), errIterations},
		"something else":               {false, write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")), errTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			url := impostor(t, tt.logIn, tt.answer)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Open(t.Context(), patient(Options{URL: url}))
			runtime.ReadMemStats(&after)
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > most {
				t.Errorf("%d MiB were taken", got>>20)
			}
			if got := Reason(err); got != reasonUnreachable {
				t.Errorf("people are told %q: somebody is there", got)
			}
		})
	}
}

// scripted is a connection that reads what was written down.
type scripted struct {
	net.Conn
	parts [][]byte
}

func (s *scripted) Read(p []byte) (int, error) {
	if len(s.parts) == 0 {
		return 0, context.DeadlineExceeded
	}
	n := copy(p, s.parts[0])
	if s.parts[0] = s.parts[0][n:]; len(s.parts[0]) == 0 {
		s.parts = s.parts[1:]
	}
	return n, nil
}

func (s *scripted) Close() error { return nil }

// Messages are followed however they are cut to pieces, and their room is given back.
func TestMessagesInPieces(t *testing.T) {
	var stream []byte
	for i := range 300 {
		stream = append(stream, header("DCZS"[i%4], uint32(i))...)
		stream = append(stream, make([]byte, i)...)
	}
	large := append(header('D', 2<<20), make([]byte, 2<<20)...)
	stream = append(stream, large...)
	stream = append(stream, header('Z', 1)...)
	stream = append(stream, 'I')
	for _, size := range []int{1, 2, 3, 5, 7, 4096, len(stream)} {
		s := &scripted{}
		for rest := stream; len(rest) > 0; {
			n := min(size, len(rest))
			s.parts = append(s.parts, rest[:n])
			rest = rest[n:]
		}
		s.parts = append(s.parts, header('E', 64<<20))
		l := &limited{Conn: s}
		read, p := 0, make([]byte, 1000)
		var err error
		for err == nil {
			var n int
			n, err = l.Read(p)
			read += n
		}
		if read != len(stream) || !errors.Is(err, errTooLarge) {
			t.Errorf("in pieces of %d: %d of %d bytes, %v", size, read, len(stream), err)
		}
		if _, again := l.Read(p); !errors.Is(again, errTooLarge) {
			t.Errorf("it goes on after that: %v", again)
		}
		_ = l.Close()
	}
	if !largeRows.TryAcquire(maxLargeRows) {
		t.Fatal("the room of large messages was not given back")
	}
	defer largeRows.Release(maxLargeRows)
	// Where there is none left a large one is refused, and a small one is not.
	l := &limited{Conn: &scripted{parts: [][]byte{header('D', maxSmallRow), make([]byte, maxSmallRow), header('D', maxSmallRow+1)}}}
	read, p := 0, make([]byte, 1<<16)
	for {
		n, err := l.Read(p)
		if read += n; err != nil {
			if !errors.Is(err, errNoRoom) || read != maxSmallRow+5 {
				t.Errorf("%d bytes, %v", read, err)
			}
			break
		}
	}
}

// A silent server ends a connection in its time.
func TestSilentServer(t *testing.T) {
	url := impostor(t, false, func(net.Conn) {})
	_, err := Open(t.Context(), Options{URL: url, ConnectTimeout: 50 * time.Millisecond})
	if err == nil || Reason(err) != reasonUnreachable {
		t.Errorf("error %v, told as %q", err, Reason(err))
	}
	if text := Reason(err); strings.Contains(text, "127.0.0.1") || strings.Contains(text, "user") {
		t.Errorf("people are told %q", text)
	}
}
