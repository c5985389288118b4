package mqtt

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

const (
	// maxBuffered is how much may wait to be written; a longer packet waits until the buffer is empty.
	maxBuffered = 64 * 1024
	// closeTimeout bounds the time Close takes to write what is left, which is a DISCONNECT at most.
	closeTimeout = time.Second
)

var errWriteTimeout = errors.New("the broker takes no more bytes")

// bufferedConn gathers writes. paho makes one write a packet and three reads a PUBACK; each would be a system call.
// Here Write appends to a buffer and one goroutine writes what has gathered: while it is inside one system call, the
// next packets come together, so no packet waits for others.
//
// It is also what knows why a connection ended: the first failure is kept, returned by every later Read and Write (so
// that paho's reader and writer both stop), and told by cause. The stream may carry any framing (a websocket message
// may hold several packets or a part of one, MQTT 3.1.1 section 6).
type bufferedConn struct {
	net.Conn // unbuffered; written by flush alone
	reader   *bufio.Reader
	clock    clock.WithTicker
	timeout  time.Duration

	// dead is closed with the first failure, or when the connection is closed.
	dead chan struct{}
	// flushed is closed when the flushing goroutine has ended.
	flushed chan struct{}
	// silence is how many nanoseconds a Read may wait for the peer; 0 is for ever.
	silence atomic.Int64
	// cut, if it is set, is what Read reads from.
	cut *cutter

	mu      sync.Mutex
	more    sync.Cond // the buffer got something, or the state changed
	room    sync.Cond // the buffer was taken, or the state changed
	buffer  []byte
	err     error
	closing bool
}

func newBufferedConn(conn net.Conn, clk clock.WithTicker, writeTimeout time.Duration) *bufferedConn {
	c := &bufferedConn{
		Conn:    conn,
		reader:  bufio.NewReaderSize(conn, 16*1024),
		clock:   clk,
		timeout: writeTimeout,
		dead:    make(chan struct{}),
		flushed: make(chan struct{}),
	}
	c.more.L, c.room.L = &c.mu, &c.mu
	go c.flush()
	return c
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if c.cut == nil {
		return c.read(p)
	}
	n, err := c.cut.Read(p)
	if err != nil {
		c.fail(err)
		return n, c.cause()
	}
	return n, nil
}

// shorten makes no packet longer than most that Read gives, before its first call.
func (c *bufferedConn) shorten(most int) {
	c.cut = &cutter{from: readerFunc(c.read), most: most}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (c *bufferedConn) read(p []byte) (int, error) {
	if silence := c.silence.Load(); silence > 0 && c.reader.Buffered() == 0 {
		if err := c.Conn.SetReadDeadline(c.clock.Now().Add(time.Duration(silence))); err != nil {
			c.fail(err)
			return 0, c.cause()
		}
	}
	n, err := c.reader.Read(p)
	if err != nil {
		c.fail(err)
		return n, c.cause()
	}
	return n, nil
}

// Write blocks only while the buffer is full, and not longer than flush waits for the peer. Success says that the
// bytes will be written unless the connection fails.
func (c *bufferedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closing && len(c.buffer) > 0 && len(c.buffer)+len(p) > maxBuffered {
		c.room.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.closing {
		return 0, net.ErrClosed
	}
	c.buffer = append(c.buffer, p...)
	c.more.Signal()
	return len(p), nil
}

// flush writes what has gathered until the connection fails or, closing, nothing is left.
func (c *bufferedConn) flush() {
	defer close(c.flushed)
	var out []byte
	for {
		c.mu.Lock()
		for c.err == nil && !c.closing && len(c.buffer) == 0 {
			c.more.Wait()
		}
		if c.err == nil && !c.closing && len(c.buffer) < maxBuffered/2 {
			// Whoever writes gets a turn first: fewer and larger system calls, here and
			// at the broker, for a sixth of the processor time of both.
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		if c.err != nil || len(c.buffer) == 0 {
			c.mu.Unlock()
			return
		}
		if cap(out) > 2*maxBuffered {
			out = nil // do not keep the room of a huge packet
		}
		out, c.buffer = c.buffer, out[:0]
		c.room.Broadcast()
		c.mu.Unlock()
		if err := c.writeOut(out); err != nil {
			c.fail(err)
			return
		}
	}
}

// writeOut writes in pieces with a deadline each, so that a slow but living peer may take its time over a large packet.
func (c *bufferedConn) writeOut(out []byte) error {
	for len(out) > 0 {
		piece := out[:min(len(out), maxBuffered)]
		if err := c.Conn.SetWriteDeadline(c.clock.Now().Add(c.timeout)); err != nil {
			return err
		}
		if _, err := c.Conn.Write(piece); err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return errWriteTimeout
			}
			return err
		}
		out = out[len(piece):]
	}
	return nil
}

// fail ends the connection for the reason err, unless it has ended already.
func (c *bufferedConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.more.Broadcast()
		c.room.Broadcast()
		close(c.dead)
		c.abort()
	}
}

// abort closes the socket at once. The Close of a TLS connection would first try to say goodbye to a peer that may not
// read any more.
func (c *bufferedConn) abort() {
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
		return
	}
	_ = c.Conn.Close()
}

// cause is why the connection ended; nil while it has not. It is net.ErrClosed when it was closed without a failure.
func (c *bufferedConn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close writes what is left, for closeTimeout at most, and closes the connection. Reads fail with net.ErrClosed after
// it, in the words by which paho knows that the end is its own doing.
func (c *bufferedConn) Close() error {
	c.mu.Lock()
	c.closing = true
	c.more.Broadcast()
	c.room.Broadcast()
	c.mu.Unlock()
	timer := c.clock.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-c.flushed:
	case <-timer.C():
	}
	c.fail(net.ErrClosed)
	<-c.flushed
	return nil
}

// SetDeadline bounds paho's handshake. Only its reads: writes have their own deadlines.
func (c *bufferedConn) SetDeadline(t time.Time) error { return c.Conn.SetReadDeadline(t) }

// SetWriteDeadline does nothing: paho calls it for every packet, while the deadline that matters is that of flush.
func (c *bufferedConn) SetWriteDeadline(time.Time) error { return nil }
