package mqtt

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// dial opens the network connection, up to the TLS or websocket handshake. paho's own opening is not exported but for
// websockets; that one does not end with ctx, but after ConnectTimeout.
func (f files) dial(ctx context.Context, a access) (net.Conn, error) {
	to := f.target
	if to.websocket {
		conn, err := paho.NewWebsocket(to.url.String(), a.tls, f.options.ConnectTimeout, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("opening the websocket: %w", err)
		}
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.options.ConnectTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.url.Host)
	if err != nil {
		return nil, err
	}
	if a.tls == nil {
		return conn, nil
	}
	secured := tls.Client(conn, a.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return secured, nil
}

// noStore is the store of paho's clients. What a store is for, sending again after a reconnect what was in flight,
// never happens here: a client has one connection, and paho reads its store in resume alone, at the beginning of one
// without a clean session, where it finds this one empty. Packet identifiers and tokens live outside of it.
type noStore struct{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
