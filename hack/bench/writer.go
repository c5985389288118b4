package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"time"
)

// The limit: packets made by hand, written through a buffer as fast as the window
// lets, acknowledgements counted. Nothing retries, nothing is kept.

const (
	writerWindow = 1000
	// writerTimeout is how long one connection may take: a message that is not
	// acknowledged would be waited for for ever.
	writerTimeout = 5 * time.Minute
)

// bestWriter publishes one message for each name and returns the best rate of 1, 2
// and 4 connections, in messages a second.
func bestWriter(ctx context.Context, brokerURL string, names []string) (float64, error) {
	best := 0.0
	for _, connections := range []int{1, 2, 4} {
		rate, err := writeAll(ctx, brokerURL, names, connections)
		if err != nil {
			return 0, err
		}
		best = max(best, rate)
	}
	return best, nil
}

func writeAll(ctx context.Context, brokerURL string, names []string, connections int) (float64, error) {
	u, err := url.Parse(brokerURL)
	if err != nil {
		return 0, err
	}
	conns := make([]net.Conn, connections)
	for i := range conns {
		if conns[i], err = connect(ctx, u.Host, fmt.Sprintf("writer-%d", i)); err != nil {
			return 0, err
		}
		defer conns[i].Close()
	}
	errs := make([]error, connections)
	var wg sync.WaitGroup
	started := time.Now()
	for i, conn := range conns {
		part := names[len(names)*i/connections : len(names)*(i+1)/connections]
		if err := conn.SetDeadline(time.Now().Add(writerTimeout)); err != nil {
			return 0, err
		}
		wg.Go(func() { errs[i] = write(conn, part, writerWindow/connections) })
	}
	stop := context.AfterFunc(ctx, func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
	defer stop()
	wg.Wait()
	return float64(len(names)) / time.Since(started).Seconds(), errors.Join(errs...)
}

// connect does the handshake (MQTT 3.1.1 section 3.1).
func connect(ctx context.Context, address, clientID string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60}, text(clientID)...)
	if _, err := conn.Write(append([]byte{0x10, byte(len(body))}, body...)); err != nil {
		return nil, err
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		return nil, err
	}
	if ack[0] != 0x20 || ack[3] != 0 {
		return nil, fmt.Errorf("the broker refuses the writer: CONNACK % x", ack)
	}
	return conn, nil
}

// write publishes to every name at QoS 1 and waits for every PUBACK.
func write(conn net.Conn, names []string, window int) error {
	slots := make(chan struct{}, window)
	acked := make(chan error, 1)
	go func() {
		r := bufio.NewReaderSize(conn, 64<<10)
		var packet [4]byte
		for range names {
			if _, err := io.ReadFull(r, packet[:]); err != nil {
				acked <- err
				return
			}
			if packet[0] != 0x40 {
				acked <- fmt.Errorf("want a PUBACK, got % x", packet)
				return
			}
			<-slots
		}
		acked <- nil
	}()
	w := bufio.NewWriterSize(conn, 64<<10)
	var packet []byte
	for i, name := range names {
		select {
		case slots <- struct{}{}:
		default: // the window is full: what is buffered must go out first
			if err := w.Flush(); err != nil {
				return err
			}
			select {
			case slots <- struct{}{}:
			case err := <-acked: // nobody frees the window any more
				return err
			}
		}
		body := 2 + len(productID) + 1 + len(name) + 1 + len(topic) + 2 + len(payload)
		packet = append(packet[:0], 0x32, byte(body))
		packet = append(packet, text(productID+"/"+name+"/"+topic)...)
		packet = binary.BigEndian.AppendUint16(packet, uint16(i%65535)+1)
		packet = append(packet, payload...)
		if _, err := w.Write(packet); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return <-acked
}

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}
