package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Products whose messages the broker treats as a broker with a fault, or with an access
// list, does.
const (
	silentProduct = "HSILENT" // never acknowledged
	hangUpProduct = "HHANGUP" // the connection is closed
)

// brokerFront stands between all clients and the broker. It hands on everything, until
// hostile is set.
type brokerFront struct {
	hostile          atomic.Bool
	swallowed, ended atomic.Int64 // messages, connections
}

// start listens until ctx ends, and returns the URL by which the broker is reached through
// the front.
func (f *brokerFront) start(ctx context.Context, brokerURL string) (string, error) {
	u, err := url.Parse(brokerURL)
	if err != nil {
		return "", err
	}
	address, err := serveTCP(ctx, func(ctx context.Context, client net.Conn) {
		var dialer net.Dialer
		broker, err := dialer.DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return
		}
		defer broker.Close()
		go func() {
			_, _ = io.Copy(client, broker)
			_ = client.Close()
		}()
		f.handOn(broker, client)
	})
	return "tcp://" + address, err
}

// handOn returns when the connection is to be closed.
func (f *brokerFront) handOn(broker io.Writer, client io.Reader) {
	r := bufio.NewReaderSize(client, 64<<10)
	w := bufio.NewWriterSize(broker, 64<<10)
	for {
		packet, err := packets.ReadPacket(r)
		if err != nil {
			return
		}
		if message, ok := packet.(*packets.PublishPacket); ok && f.hostile.Load() {
			switch product, _, _ := strings.Cut(message.TopicName, "/"); product {
			case silentProduct:
				f.swallowed.Add(1)
				continue
			case hangUpProduct:
				f.ended.Add(1)
				return
			}
		}
		if packet.Write(w) != nil {
			return
		}
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
	}
}

// serveTCP listens on a free port of this machine until ctx ends, serves each connection
// by a goroutine of its own and closes it then. It returns the address.
func serveTCP(ctx context.Context, serve func(context.Context, net.Conn)) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	context.AfterFunc(ctx, func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for conn := range open {
			_ = conn.Close()
		}
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			if ctx.Err() != nil {
				_ = conn.Close() // it came too late for the function above
			}
			go func() {
				serve(ctx, conn)
				_ = conn.Close()
				mu.Lock()
				defer mu.Unlock()
				delete(open, conn)
			}()
		}
	}()
	return l.Addr().String(), nil
}
