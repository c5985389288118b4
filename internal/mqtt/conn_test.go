package mqtt

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
)

// tcpPair is a real connection, with the buffers of the kernel.
func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	near, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return near, far
}

// patient is a clock by which Close waits for ever until all is written: the peer may be slow to read.
func patient() clock.WithTicker { return clocktesting.NewFakeClock(time.Now()) }

func TestConnGathersWrites(t *testing.T) {
	near, far := tcpPair(t)
	c := newBufferedConn(near, patient(), time.Hour)
	const writers, each = 8, 2000
	var running sync.WaitGroup
	for i := range writers {
		running.Go(func() {
			packet := bytes.Repeat([]byte{byte('a' + i)}, 10)
			for range each {
				if _, err := c.Write(packet); err != nil {
					t.Errorf("Write: %v", err)
					return
				}
			}
		})
	}
	go func() { running.Wait(); _ = c.Close() }()
	got, err := io.ReadAll(far)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != writers*each*10 {
		t.Fatalf("peer got %d bytes, want %d: Close must write what is left", len(got), writers*each*10)
	}
	for i := 0; i < len(got); i += 10 {
		if !bytes.Equal(got[i:i+10], bytes.Repeat(got[i:i+1], 10)) {
			t.Fatalf("packets are mixed: %q", got[i:i+10])
		}
	}
}

func TestConnLargePacket(t *testing.T) {
	near, far := tcpPair(t)
	c := newBufferedConn(near, patient(), time.Hour)
	want := bytes.Repeat([]byte("0123456789"), 500_000)
	go func() { _, _ = c.Write(want); _ = c.Close() }()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("peer got %d bytes and %v, want %d", len(got), err, len(want))
	}
}

func TestConnPeerDoesNotRead(t *testing.T) {
	near, _ := tcpPair(t)
	c := newBufferedConn(near, clock.RealClock{}, 100*time.Millisecond)
	reads := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); reads <- err }()
	packet := make([]byte, 10_000)
	var err error
	for range 100_000 {
		if _, err = c.Write(packet); err != nil {
			break
		}
	}
	if !errors.Is(err, errWriteTimeout) {
		t.Errorf("Write: %v, want %v", err, errWriteTimeout)
	}
	if err := <-reads; !errors.Is(err, errWriteTimeout) {
		t.Errorf("Read: %v, want the reason of the failure, %v", err, errWriteTimeout)
	}
	if brokerDropped(c.cause()) {
		t.Errorf("%v counts as the broker's doing", c.cause())
	}
	_ = c.Close()
}

func TestConnPeerCloses(t *testing.T) {
	near, far := tcpPair(t)
	c := newBufferedConn(near, clock.RealClock{}, time.Hour)
	_ = far.Close()
	var err error
	for err == nil {
		_, err = c.Write([]byte("x"))
	}
	if _, again := c.Write([]byte("x")); !errors.Is(again, err) {
		t.Errorf("second Write: %v, want the first one's %v", again, err)
	}
	<-c.dead
	if !brokerDropped(c.cause()) {
		t.Errorf("%v does not count as the broker's doing", c.cause())
	}
	_ = c.Close()
}

func TestConnClose(t *testing.T) {
	t.Run("with a peer that does not read", func(t *testing.T) {
		near, _ := tcpPair(t)
		c := newBufferedConn(near, clock.RealClock{}, time.Hour)
		// Fill the kernel's buffers until the flushing goroutine hangs.
		filled := make(chan struct{})
		go func() {
			defer close(filled)
			for {
				if _, err := c.Write(make([]byte, maxBuffered)); err != nil {
					return
				}
			}
		}()
		eventually(t, "the buffer stays full", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.buffer) >= maxBuffered
		})
		began := time.Now()
		_ = c.Close()
		<-filled
		if took := time.Since(began); took > time.Minute {
			t.Errorf("Close took %v", took)
		}
	})
	t.Run("several times at once, while reading", func(t *testing.T) {
		near, _ := tcpPair(t)
		c := newBufferedConn(near, clock.RealClock{}, time.Second)
		var running sync.WaitGroup
		for range 4 {
			running.Go(func() { _ = c.Close() })
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read: %v, want net.ErrClosed", err)
		}
		running.Wait()
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write: %v, want net.ErrClosed", err)
		}
	})
}
